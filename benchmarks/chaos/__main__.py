"""All parts of `make chaos`, several at once, with a table of their results.

python -m benchmarks.chaos [--list] [--jobs N] [--only NAME]...

Most parts wait much of their time, for starts of engines and for deadlines. A part that fails does not keep the others
from running. The output of each part is in a file of its own. The exit status is 1 if a part has failed. What a part
leaves running is killed.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos import parts
from benchmarks.chaos.parts import Outcome, Result, run_parts


def show(results: Sequence[Result], console: Console, *, elapsed_s: float) -> None:
    """Print the table of results.

    Args:
        results: The results.
        console: Where it is printed.
        elapsed_s: Duration of all parts together, seconds.
    """
    table = Table("part", "result", "seconds", "CPU seconds", "")
    for each in results:
        note = each.last_line if each.outcome is Outcome.SKIPPED else each.part.shows
        table.add_row(each.part.name, each.outcome, f"{each.elapsed_s:.0f}", f"{each.cpu_s:.0f}", note)
    table.add_section()
    table.add_row("all", "", f"{elapsed_s:.0f}", f"{sum(each.cpu_s for each in results):.0f}", "")
    console.print(table)


def main(
    only: Annotated[list[str] | None, typer.Option(help="Name of a part to run; may be repeated.")] = None,
    list_parts: Annotated[bool, typer.Option("--list", help="Print the parts and exit.")] = False,
    jobs: Annotated[int, typer.Option(help="Number of parts at once.", min=1)] = 2,
    logs: Annotated[Path, typer.Option(help="Folder for the output of the parts.")] = Path("build/chaos"),
) -> None:
    """Inject the faults that take too long for the tests, and print what came of each part."""
    console = Console()
    if list_parts:
        listed = Table.grid(padding=(0, 2))
        for part in parts.PARTS:
            listed.add_row(part.name, part.shows)
        console.print(listed)
        return
    names = [part.name for part in parts.PARTS]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(f"no part is named {', '.join(unknown)}; parts are: {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    results = run_parts([part for part in parts.PARTS if not only or part.name in only], logs, console, jobs=jobs)
    show(results, console, elapsed_s=time.monotonic() - began)
    raise typer.Exit(int(any(each.is_failed for each in results)))


if __name__ == "__main__":
    typer.run(main)
