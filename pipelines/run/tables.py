"""Console tables that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

TERMINAL_COLUMNS = 80
# Two spaces of padding and one border for each column; one border for the table.
_COLUMN_OVERHEAD, _TABLE_OVERHEAD = 3, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Table row.

    Attributes:
        name: Cell of the first column.
        cells: Remaining cells, with rich markup.
        style: Rich style of the row; None for the default.
        ends_section: Whether a line separates this row from the next one.
    """

    name: str
    cells: Sequence[str]
    style: str | None = None
    ends_section: bool = False


def fitted_table(title: str, headers: Sequence[str], rows: Sequence[Row], *, caption: str = "") -> Group:
    """Return a table, split into several if it is wider than 80 columns.

    Each part repeats the first column. A header may hold line breaks. Columns are right-aligned, except the first.

    Args:
        headers: Header of the first column, then one for each entry of `Row.cells`.
        caption: Text below the last part.
    """
    first, *others = headers
    name_width = max(map(_width, [first, *(row.name for row in rows)]))
    widths = [max(map(_width, [header, *(row.cells[at] for row in rows)])) for at, header in enumerate(others)]
    blocks = _blocks(widths, TERMINAL_COLUMNS - _TABLE_OVERHEAD - name_width - _COLUMN_OVERHEAD)
    tables = []
    for number, block in enumerate(blocks):
        table = Table(title=title if number == 0 else None, title_justify="left", caption_justify="left")
        table.add_column(first)
        for at in block:
            table.add_column(others[at], justify="right")
        for row in rows:
            table.add_row(row.name, *(row.cells[at] for at in block), style=row.style, end_section=row.ends_section)
        tables.append(table)
    tables[-1].caption = caption or None
    return Group(*tables)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Divide columns of these widths into consecutive blocks that each fit in `room`, with one column at least."""
    blocks: list[list[int]] = [[]]
    used = 0
    for at, width in enumerate(widths):
        needed = width + _COLUMN_OVERHEAD
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(at)
        used += needed
    return blocks


def _width(cell: str) -> int:
    """Return the width of the longest line of a cell, without its markup."""
    return max(Text.from_markup(line).cell_len for line in cell.split("\n"))
