"""Lists for terminals of any width: one aligned line per entry, and a line of details below it.

A rich table breaks words when its cells do not fit. Here no word is ever broken: aligned lines may be longer than the
terminal, and details wrap between words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a list.

    Attributes:
        cells: Values of the aligned columns.
        details: Text below the entry; empty for none.
    """

    cells: tuple[str, ...]
    details: str = ""


def print_entries(console: Console, header: tuple[str, ...], entries: Sequence[Entry]) -> None:
    """Print entries below a header. Put the columns that must stay visible first."""
    rows = [header, *(entry.cells for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]

    def aligned(cells: tuple[str, ...]) -> str:
        return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    console.print(Text(aligned(header), style="bold"), soft_wrap=True)
    for entry in entries:
        console.print(Text(aligned(entry.cells)), soft_wrap=True)
        if entry.details:
            print_wrapped(console, entry.details, indent="    ", first_indent="    ")


def print_wrapped(console: Console, text: str, *, indent: str = "    ", first_indent: str = "") -> None:
    """Print text with line breaks between words only. Output that is not a terminal gets one line."""
    lines = [first_indent + text]
    if console.is_terminal:
        lines = textwrap.wrap(
            text,
            console.width,
            initial_indent=first_indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    for line in lines:
        console.print(Text(line), soft_wrap=True)
