"""The command `rlad`.

Commands import their pipeline after they have read the configuration: an error in the configuration is reported at
once, without the seconds that importing torch takes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

# Inherited by every child process. Set before the imports below, which read these variables.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import typer
from rich.console import Console
from rich.markup import escape

from pipelines.cli import deploy as deploy_cli
from pipelines.cli import jobs as jobs_cli
from pipelines.cli import plan as plan_cli
from pipelines.cli import prompts as prompts_cli
from pipelines.cli import samples as samples_cli
from pipelines.cli import simulate as simulate_cli
from pipelines.cli import teacher as teacher_cli
from pipelines.cli import verify as verify_cli
from pipelines.cli.arguments import ConfigFile, Overrides
from pipelines.cli.checks import doctor as doctor_cli
from pipelines.cli.governance import commands as registry_commands
from pipelines.cli.output import redact_logs, redact_tracebacks
from pipelines.cli.recurring import control as schedule_control
from pipelines.cli.viewing import console as console_cli
from pipelines.init import command as init_cli
from rlad.credentials import redact
from rlad.errors import ConfigError, RladError, StopRequestedError

app = typer.Typer(
    name="rlad",
    help=(
        "RL-aware distillation: train a small student with reinforcement learning while a large teacher scores every "
        "token of its responses."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(jobs_cli.app)
app.add_typer(samples_cli.app)
app.add_typer(init_cli.app)
app.add_typer(plan_cli.app)
app.add_typer(prompts_cli.app)
app.add_typer(verify_cli.app)
app.add_typer(simulate_cli.app)
app.add_typer(deploy_cli.app)
app.add_typer(registry_commands.app)
app.add_typer(teacher_cli.app)
app.add_typer(schedule_control.app)
app.add_typer(doctor_cli.app)
app.add_typer(console_cli.app)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/smoke.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir from its last checkpoint.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to run on.", show_default="start a local cluster")
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Directory for all files of the run.", show_default="runs/NAME")
]


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log at INFO level, one event per line.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    redact_logs()


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: RunDirOption = None,
    resume: Resume = False,
    address: Address = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="Restarts of the driver, from its last checkpoint, after it died or hung."),
    ] = 0,
) -> None:
    """Train a student as CONFIG describes."""
    from pipelines.run.directory import RunDirectory
    from rlad.config import load_run_config

    overrides = [*(overrides or []), *([f"cluster.address={address}"] if address else [])]
    settings = load_run_config(config, overrides)
    directory = RunDirectory(_run_dir(run_dir, settings.name))
    directory.require_usable(settings, resume=resume)  # before the imports of the driver, which take seconds
    if max_restarts:
        from pipelines.jobs.supervisor import supervise

        options = ["--run-dir", str(directory.path), *(["--resume"] if resume else [])]
        command = [sys.executable, "-m", "pipelines", "run", str(config), *overrides, *options]
        status = supervise(command, directory, max_restarts=max_restarts, failures=settings.failures)
        raise typer.Exit(status)
    from pipelines.distill import distill
    from pipelines.pretrain import ensure_starters_of

    console = Console()
    ensure_starters_of(settings, console)
    distill(settings, directory, resume=resume, console=console)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def offline() -> None:
    """Removed: `rlad run` runs every configuration, offline distillation included."""
    raise ConfigError("`rlad offline` was removed: use `rlad run` with the same configuration and options")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe: kk (demo) or kk-smoke (tests).")] = "kk",
    force: Annotated[bool, typer.Option("--force", help="Train again, even if the models are cached.")] = False,
) -> None:
    """Train the starter models on CPU: a tokenizer, a teacher and a weak student.

    The models learn from generated puzzles and are cached. `rlad run` trains
    missing starter models itself.
    """
    from pipelines.pretrain import pretrain as make

    make(recipe, cache_dir=None, force=force, console=Console())


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model: a directory such as the export of a run, a hub id OWNER/NAME[@REVISION], s3://... or "
            "gs://..., registry:MODEL@ALIAS, or starter:RECIPE/ROLE.",
        ),
    ],
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            "-c",
            help="YAML file of evaluation sets (configs/eval_math.yaml), or of a run to use its evaluation.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets", help="Evaluation sets to use, separated by commas.", show_default="all sets of the file"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory for evaluation.json and all responses (JSON Lines).", show_default="print only"),
    ] = None,
) -> None:
    """Evaluate MODEL: mean@k, maj@k and pass@k, with 95% confidence intervals."""
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
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="YAML file of the comparison, for example configs/compare_kk_cpu.yaml."),
    ],
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods to run, separated by commas. The first is the baseline.",
            show_default="all methods of the file",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas.", show_default="seeds of the file")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory for the runs and the report.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished runs and continue the others.")] = False,
) -> None:
    """Compare training methods over several seeds.

    All runs of a seed start from the same student. The report gives accuracy
    and cost of each method, and tests whether differences in accuracy are
    larger than chance.
    """
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
    for planned in comparison.runs:
        if planned.seed == comparison.config.seeds[0]:
            ensure_starters_of(planned.config, console)
    run_comparison(
        comparison, ComparisonDirectory(_run_dir(run_dir, comparison.config.name)), resume=resume, console=console
    )


@app.command()
def report(run: RunPath) -> None:
    """Write report.html for RUN, finished or still training."""
    from pipelines.reports.run_report import write_report
    from pipelines.run.directory import RunDirectory

    directory = RunDirectory(run)
    write_report(directory)
    typer.echo(directory.report)


@app.command()
def ledger(
    run: RunPath, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Count the groups of RUN by state.

    Exits with status 1 if `lost` or `duplicated` is not 0.
    """
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


def _run_dir(path: Path | None, name: str) -> Path:
    from pipelines.cluster.job_environment import require_lasting

    run_dir = path or Path("runs") / name
    require_lasting(run_dir)
    return run_dir


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers separated by commas, got {text!r}") from None


def _use_token() -> None:
    """Enable Ray's token authentication if this machine has a token.

    Ray protects a cluster that it starts with a token in the home directory, and clients must opt in to use it. Ray
    reads the variable at import, so it is set before. Only `main()` sets it: importing this module changes nothing.
    """
    if (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def main() -> None:
    """Run the command line. A `RladError` prints one message and exits with status 1, without a traceback.

    A run that was stopped on request exits with `STOPPED_EXIT_CODE`, and one that a signal ended with 128 + N.
    """
    _use_token()
    redact_tracebacks()
    try:
        app()
    except StopRequestedError as stop:
        _exit_stopped(stop)
    except RladError as error:
        _fail(getattr(error, "cause", None) or error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        _fail(f"{error}. Free space or repair the disk, and continue with --resume")
    except SystemExit as end:
        # typer turns Ctrl-C into an exit
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _exit_interrupted(signal.SIGINT)
        if end.code == signal.SIGTERM:  # Ray's SIGTERM handler exits with this code: a stopped job, a deleted pod
            _exit_interrupted(signal.SIGTERM)
        raise


def _exit_stopped(stop: StopRequestedError) -> None:
    from pipelines.run.status import STOPPED_EXIT_CODE

    Console(stderr=True).print(f"[yellow]stopped:[/] {escape(redact(str(stop)))}", highlight=False, soft_wrap=True)
    sys.exit(STOPPED_EXIT_CODE)


def _exit_interrupted(by: signal.Signals) -> None:
    Console(stderr=True).print(
        "[yellow]interrupted[/]: checkpoints are kept; continue with the same command and --resume",
        soft_wrap=True,
    )
    sys.exit(128 + by)


def _fail(error: BaseException | str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(redact(str(error)))}", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
