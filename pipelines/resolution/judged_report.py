"""Report of `rlad verify`: a table of outcomes and the doubtful verdicts, for terminals of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.resolution.judged_rows import JudgedRow, counts_of, doubtful_of

_SHOWN_CHARACTERS = 240
_MEANINGS = {
    "correct": "earns the reward",
    "wrong": "differs from the expected answer",
    "unparseable": "no answer found in the response",
    "timeout": "no verdict in time",
    "error": "the verifier cannot read the expected answer",
}


def print_judged(console: Console, judged: Sequence[JudgedRow], *, title: str, shown: int, elapsed_s: float) -> None:
    """Print the outcomes with their shares, the time, and the first doubtful rows.

    Args:
        console: Where to print.
        judged: The judged rows.
        title: Heading of the table.
        shown: Number of doubtful rows to print.
        elapsed_s: Seconds of the whole command.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("outcome")
    table.add_column("responses", justify="right")
    table.add_column("share", justify="right")
    table.add_column("meaning")
    for name, count in counts_of(judged).items():
        table.add_row(name, str(count), f"{count / len(judged):.1%}", _MEANINGS[name], style="" if count else "dim")
    console.print(table)
    mean_ms = 1000 * sum(each.elapsed_s for each in judged) / len(judged)
    slowest = max(judged, key=lambda each: each.elapsed_s)
    _wrapped(
        console,
        f"{len(judged)} responses in {elapsed_s:.1f} s; a verdict takes {mean_ms:.1f} ms on average, "
        f"{1000 * slowest.elapsed_s:.0f} ms at most ({slowest.row.location})",
    )
    doubtful = list(doubtful_of(judged))
    if not doubtful:
        _wrapped(console, "no doubtful verdicts", style="green")
        return
    _wrapped(console, "")
    _wrapped(console, f"{len(doubtful)} doubtful verdict{'' if len(doubtful) == 1 else 's'}", style="bold yellow")
    for each in doubtful[:shown]:
        _wrapped(console, f"{each.row.location}: {each.doubt}", style="yellow")
        _wrapped(console, f"expected: {_shortened(each.row.answer)}", indent="    ")
        _wrapped(console, f"response: {_end_of(each.row.response)}", indent="    ")
    if len(doubtful) > shown:
        _wrapped(console, f"and {len(doubtful) - shown} more: --doubtful N shows N of them, --json all")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _end_of(text: str) -> str:
    """Return the end of a response, where its answer usually is."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}"


def _wrapped(console: Console, text: str, *, indent: str = "", style: str = "") -> None:
    lines = textwrap.wrap(
        " ".join(text.split()),
        min(console.width, 80),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )
    for line in lines or [""]:
        shown = "".join(mark if mark.isprintable() else " " for mark in line)
        console.print(Text(shown, style=style), soft_wrap=True)
