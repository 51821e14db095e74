"""`rlad verify`: judge responses in a file, before a run depends on the verifier."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rlad.errors import ConfigError

if TYPE_CHECKING:
    from rlad.verifiers import VerifierConfig

app = typer.Typer()


@app.command()
def verify(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Responses and their answers: a file, a folder of files, a glob in quotes."
        ),
    ],
    verifier: Annotated[
        str,
        typer.Option(
            "--verifier", metavar="SETTINGS", help="Verifier, as in `verifiers:`, for example '{name: math_answer}'."
        ),
    ],
    response: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of the response, or of a list of them.", show_default="response, output, ..."
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the expected answer.", show_default="answer, ground_truth, ..."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Maximum number of responses.", show_default="all"),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Deadline of one response, as verifier_pool.timeout_s.")
    ] = 10.0,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of processes.", show_default="CPUs, at most 8")
    ] = None,
    doubtful: Annotated[int, typer.Option(metavar="N", min=0, help="Number of doubtful verdicts to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all doubtful verdicts.")] = False,
) -> None:
    """Judge the responses in FILE with a verifier, and show outcomes and doubtful verdicts.

    Each row holds a response (or a list of them) and the expected answer.
    Columns in nested data are named with dots: reward_model.ground_truth.
    A verdict is doubtful if the verifier fails or is too slow, if it finds no
    answer, or if a simple second comparison disagrees. Exits with status 1 if
    no response could be judged.
    """
    from pipelines.resolution.judged_report import print_judged
    from pipelines.resolution.judged_rows import judge_rows, read_answered_rows, report_of
    from rlad.contracts import Outcome

    settings = _settings(verifier)
    rows = read_answered_rows(file, response=response, answer=answer, limit=limit)
    start = time.monotonic()
    with _progress(len(rows)) as advance:
        judged = judge_rows(
            rows,
            settings,
            timeout_s=timeout,
            processes=processes or min(os.cpu_count() or 1, 8),
            on_row=advance,
        )
    elapsed_s = time.monotonic() - start
    if as_json:
        typer.echo(json.dumps(report_of(file, settings, judged, elapsed_s), ensure_ascii=False, indent=2))
    else:
        print_judged(Console(), judged, title=f"Verifier {settings.name}", shown=doubtful, elapsed_s=elapsed_s)
    if all(each.outcome in (Outcome.ERROR, Outcome.TIMEOUT) for each in judged):
        raise typer.Exit(1)


def _settings(text: str) -> VerifierConfig:
    """Return the verifier that the option describes: settings in YAML, or only a name.

    Raises:
        ConfigError: The text is not YAML, or the settings are invalid.
    """
    import yaml

    from rlad.verifiers import read_verifier

    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--verifier {text!r} is not valid YAML: {error}; write for example --verifier '{{name: math_answer}}'"
        ) from error
    settings = {"name": settings} if isinstance(settings, str) else settings
    if not isinstance(settings, dict):
        raise ConfigError(f"--verifier must be settings such as '{{name: math_answer}}', got {text!r}")
    return read_verifier(settings)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal while the context lasts. The value counts one row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("judging"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=total)
        yield lambda: progress.advance(task)
