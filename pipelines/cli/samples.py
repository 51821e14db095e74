"""`rlad samples`: the logged responses of a run in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlad.errors import ConfigError

app = typer.Typer()


@app.command()
def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/smoke.")],
    step: Annotated[
        int | None,
        typer.Option(help="Step, counted as in metrics.jsonl.", show_default="all steps, newest first"),
    ] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Lowest rewards first.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Highest rewards first.")] = False,
    disagree: Annotated[
        bool, typer.Option("--disagree", help="Responses first whose tokens the teacher finds least likely.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of responses.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with log-probabilities.")] = False,
) -> None:
    """Show logged responses of RUN with the teacher's agreement.

    Green tokens are as likely for the teacher as for the student, yellow ones
    less. Red ones, in «quotes», are much less likely.
    """
    from pipelines.cli.tables.samples import as_json_value, print_samples
    from pipelines.run.directory import RunDirectory
    from rlad.samples.reading import SampleOrder, read_samples

    flags = {SampleOrder.WORST: worst, SampleOrder.BEST: best, SampleOrder.DISAGREE: disagree}
    orders = [order for order, is_set in flags.items() if is_set]
    if len(orders) > 1:
        given = " and ".join(f"--{order.value}" for order in orders)
        raise ConfigError(f"expected at most one of --worst, --best and --disagree; got {given}")
    order = orders[0] if orders else SampleOrder.NEWEST
    rows = read_samples(RunDirectory(run).samples, order=order, step=step, limit=limit)
    if as_json:
        typer.echo(json.dumps([as_json_value(row) for row in rows]))
    else:
        print_samples(Console(), rows)
