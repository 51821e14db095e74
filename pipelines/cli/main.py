"""The command `rlad`. What a command imports for its work it imports behind its settings: a mistake in them is told at once, not behind seconds of torch."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

# The environment of every process that this one starts, so set before the libraries that read it are imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import typer
from rich.console import Console

from pipelines.cli import deploy as deploy_cli
from pipelines.cli import jobs as jobs_cli
from pipelines.cli import plan as plan_cli
from pipelines.cli import registry as registry_cli
from pipelines.cli import schedule as schedule_cli
from pipelines.cli import simulate as simulate_cli
from pipelines.cli import teacher as teacher_cli
from rlad.errors import ConfigError, RladError

app = typer.Typer(
    name="rlad",
    help="RL-aware distillation: train a small student by reinforcement while a large teacher scores every token.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(jobs_cli.app)
app.add_typer(plan_cli.app)
app.add_typer(simulate_cli.app)
app.add_typer(deploy_cli.app)
app.add_typer(registry_cli.app)
app.add_typer(teacher_cli.app)
app.add_typer(schedule_cli.app)

ConfigFile = Annotated[Path, typer.Argument(help="A run's YAML file, for example configs/smoke_cpu.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that win over the file: key=value, for example training.steps=10.")
]
RunPath = Annotated[Path, typer.Argument(help="A run directory.")]


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, one event a line.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where everything of the run goes. [default: runs/NAME]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that the directory holds.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on; without it a local one is started.")
    ] = None,
) -> None:
    """Distil a student, as CONFIG says."""
    from rlad.config import load_run_config

    settings = load_run_config(config, [*(overrides or []), *([f"cluster.address={address}"] if address else [])])
    from pipelines.distill import distill
    from pipelines.pretrain import ensure_starters_of
    from pipelines.run.directory import RunDirectory

    console = Console()
    ensure_starters_of(settings, console)
    distill(settings, RunDirectory(_run_dir(run_dir, settings.name)), resume=resume, console=console)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def offline() -> None:
    """Removed: `rlad run` runs every configuration, offline distillation included."""
    raise ConfigError("`rlad offline` was removed: use `rlad run` with the same configuration and options")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="Which pair of starter models: kk (the demo's) or kk-smoke.")] = "kk",
    force: Annotated[bool, typer.Option("--force", help="Make them again although they are in the cache.")] = False,
) -> None:
    """Make a tokenizer, a teacher and a weak student from generated puzzles, on CPU; once, then they come from the cache."""
    from pipelines.pretrain import pretrain as make

    make(recipe, cache_dir=None, force=force, console=Console())


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Hugging Face model directory, a run's export/, or starter:RECIPE/ROLE.")
    ],
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            "-c",
            help="A file of evaluation sets (configs/eval_math.yaml), or a run, whose evaluation is then used.",
        ),
    ],
    overrides: Overrides = None,
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets", help="Only these sets of the file, separated by commas. [default: all]", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory for evaluation.json and every response (JSONL).")
    ] = None,
) -> None:
    """Evaluate MODEL: mean@k, maj@k and pass@k with confidence intervals."""
    from rlad.config import load_evaluation_suite

    suite = load_evaluation_suite(config, [*(overrides or []), f"student.path={model}"])
    if sets is not None:
        suite = suite.only(sets.split(","))
    from pipelines.evaluate import evaluate_model
    from pipelines.pretrain import ensure_models

    console = Console()
    ensure_models([suite.student.path], console)
    evaluate_model(suite, console, output=output)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A comparison's YAML file, for example configs/compare_kk_cpu.yaml.")],
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these methods, separated by commas; the others are compared with the first. [default: all]",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="These seeds, separated by commas, instead of the file's.", show_default=False)
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the runs and the report go. [default: runs/NAME]", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue: finished runs are kept, the others are run.")
    ] = False,
) -> None:
    """Compare methods from one start over several seeds, and say whether they differ by more than chance."""
    from rlad.config.comparison import load_comparison

    comparison = load_comparison(
        config,
        overrides or [],
        methods=methods.split(",") if methods else None,
        seeds=_whole_numbers(seeds) if seeds else None,
    )
    from pipelines.compare import ComparisonDirectory
    from pipelines.compare import compare as run_comparison
    from pipelines.pretrain import ensure_starters_of

    console = Console()
    for planned in comparison.runs[: len(comparison.config.methods)]:
        ensure_starters_of(planned.config, console)
    run_comparison(
        comparison, ComparisonDirectory(_run_dir(run_dir, comparison.config.name)), resume=resume, console=console
    )


@app.command()
def report(run: RunPath) -> None:
    """Write RUN's report.html from what it has recorded so far."""
    from pipelines.reports.run_report import write_report
    from pipelines.run.directory import RunDirectory

    directory = RunDirectory(run)
    write_report(directory)
    typer.echo(directory.report)


@app.command()
def ledger(run: RunPath, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Count RUN's groups by state. `lost` and `duplicated` must be 0."""
    from pipelines.run.directory import RunDirectory
    from rlad.ledger import Ledger

    book = Ledger(RunDirectory(run).ledger, read_only=True)
    counts = book.counts().as_dict()
    book.close()
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        width = max(map(len, counts))
        typer.echo("\n".join(f"{name:<{width}}  {count}" for name, count in counts.items()))
    if counts["lost"] or counts["duplicated"]:
        raise typer.Exit(1)


def _run_dir(given: Path | None, name: str) -> Path:
    from pipelines.cluster.job_environment import require_lasting

    run_dir = given or Path("runs") / name
    require_lasting(run_dir)
    return run_dir


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers separated by commas, got {text!r}") from None


def _use_token() -> None:
    """A cluster that Ray starts here has a token, which lies in the home directory; whoever joins a cluster must say that it has one.

    For this process and those it starts, and before Ray is imported, which reads it then. Whoever imports this module alone decides for itself.
    """
    if (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def main() -> None:
    """Entry point: an error of ours is one clear message and status 1, not a traceback."""
    _use_token()
    try:
        app()
    except RladError as error:
        _fail(getattr(error, "cause", None) or error)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # what typer makes of Ctrl-C
            _say_interrupted(signal.SIGINT)
        if end.code == signal.SIGTERM:  # what Ray makes of the signal: a job that is stopped, a pod that is taken away
            _say_interrupted(signal.SIGTERM)
        raise


def _say_interrupted(by: signal.Signals) -> None:
    Console(stderr=True).print(
        "[yellow]interrupted[/]: nothing that a checkpoint holds is lost; continue with the same command and --resume",
        soft_wrap=True,
    )
    sys.exit(128 + by)


def _fail(error: BaseException) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
