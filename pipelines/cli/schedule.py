"""`rlad schedule`: recurring runs that promote better students."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer
from rich.console import Console

from rlad.config.schedule import ScheduleConfig, TickEvent

if TYPE_CHECKING:
    from pipelines.schedules.execution import Ticker
    from pipelines.schedules.launcher import RunLauncher
    from pipelines.schedules.records import Tick
    from pipelines.schedules.store import ScheduleStore

app = typer.Typer(
    name="schedule",
    help="Manage recurring runs. Each tick starts a run; a better student is promoted to production.",
    no_args_is_help=True,
)

T = TypeVar("T")

Name = Annotated[str, typer.Argument(help="Name of the schedule.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="RLAD_SCHEDULES",
        metavar="URL",
        help="Schedule database: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE. "
        "Default: a file in the user's data directory.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def schedule() -> None:
    """Manage recurring runs. Each tick starts a run; a better student is promoted to production."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the schedule. Run names begin with it.")],
    config: Annotated[
        Path,
        typer.Argument(
            help="Run configuration (YAML). Its settings are stored; later changes of the file have no effect."
        ),
    ],
    cron: Annotated[str, typer.Option(help="Five cron fields, for example '0 2 * * *' for 02:00 every day.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that override the file: key=value.")] = None,
    timezone: Annotated[
        str,
        typer.Option(
            help="IANA time zone of the cron fields. Fixed times that a clock change skips or repeats tick once."
        ),
    ] = "Etc/UTC",
    registry: Annotated[
        str,
        typer.Option(
            envvar="RLAD_REGISTRY", help="Model registry: a local path, s3://bucket/prefix or gs://bucket/prefix."
        ),
    ] = "registry",
    model: Annotated[
        str | None, typer.Option(help="Model name in the registry. Default: NAME.", show_default=False)
    ] = None,
    start_from: Annotated[
        str,
        typer.Option(
            help="Alias of the version to start from, or `config` to always start from the configured student."
        ),
    ] = "production",
    margin: Annotated[
        float,
        typer.Option(
            help="Minimum accuracy gain (mean@k) for a promotion. The gain must also be statistically significant."
        ),
    ] = 0.0,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Pattern of prompt files, read anew at each tick: 'prompts/*.jsonl'.",
            show_default=False,
        ),
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Train only on files that no finished run has trained on.")
    ] = False,
    keep: Annotated[int, typer.Option(help="Number of versions to keep, in addition to versions with an alias.")] = 5,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that this machine belongs to, for example auto. Default: a local cluster per run.",
            show_default=False,
        ),
    ] = None,
    job_address: Annotated[
        str | None,
        typer.Option(
            help="Dashboard of a standing Ray cluster, http://HOST:8265: runs are its jobs, and outlive the ticker.",
            show_default=False,
        ),
    ] = None,
    job_token_env: Annotated[
        str | None,
        typer.Option(help="Environment variable of the ticker with the token of that cluster.", show_default=False),
    ] = None,
    deadline_s: Annotated[
        float, typer.Option(help="Maximum duration of a run in seconds, over all attempts.")
    ] = 86_400,
    retries: Annotated[int, typer.Option(help="Maximum number of times a failed or killed run is continued.")] = 2,
    retry_wait_s: Annotated[float, typer.Option(help="Seconds before the first retry; doubles with each retry.")] = 30,
    misfire_grace_s: Annotated[
        float, typer.Option(help="Maximum delay of a tick in seconds; a later tick is recorded as missed.")
    ] = 3600,
    lease_s: Annotated[
        float, typer.Option(help="Seconds without a renewal after which another ticker may take over.")
    ] = 60,
    same_seed: Annotated[
        bool,
        typer.Option(
            "--same-seed", help="Use the configuration's seed in every run, so that the prompt order is the same."
        ),
    ] = False,
    webhook_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with a webhook URL that is notified of ended ticks.", show_default=False
        ),
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with a bearer token for the webhook.", show_default=False)
    ] = None,
    notify_command: Annotated[
        str | None,
        typer.Option(
            help="Command that is run for ended ticks, with JSON on standard input. No shell.", show_default=False
        ),
    ] = None,
    notify_on: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Notify of this event only; repeatable. Events: {', '.join(get_args(TickEvent))}.", show_default=False
        ),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Directory of the schedule's runs. Default: runs/NAME.", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change an existing schedule. Its history is kept.")
    ] = False,
    store: StoreUrl = None,
) -> None:
    """Add a schedule that runs CONFIG periodically and promotes better students.

    The evaluation prompts are frozen now. All students of the schedule are compared on them and never trained on them.
    """
    from pipelines.cli.tables.schedule import schedule_line
    from pipelines.schedules.adding import add_schedule, job_settings, schedule_settings

    settings = schedule_settings(
        name,
        config,
        overrides or [],
        cron=cron,
        timezone=timezone,
        registry=registry,
        model=model or name.lower(),
        start_from=None if start_from == "config" else start_from,
        margin=margin,
        prompts={"pattern": prompts, "use": "new" if only_new else "all"} if prompts is not None else None,
        keep_versions=keep,
        address=address,
        **job_settings(job_address, job_token_env),
        deadline_s=deadline_s,
        retries=retries,
        retry_wait_s=retry_wait_s,
        misfire_grace_s=misfire_grace_s,
        lease_s=lease_s,
        vary_seed=not same_seed,
        notify=_notify_settings(webhook_env, token_env, notify_command, notify_on),
        directory=directory or Path("runs") / name,
    )
    with open_store(store) as opened:
        add_schedule(opened, settings, replace=replace)
        typer.echo(schedule_line(opened.schedule(name)))


@app.command(name="list")
def list_schedules(as_json: AsJson = False, store: StoreUrl = None) -> None:
    """List the schedules with their next and last ticks, and the invalid rows of the store."""
    from pipelines.cli.tables.schedule import broken_row_facts, print_schedules, schedule_facts

    with open_store(store) as opened:
        rows = [(found, opened.history(found.name)) for found in opened.schedules()]
        broken, queued = opened.broken_rows(), opened.queue.entries()
    if as_json:
        facts = [schedule_facts(found, history, queued) for found, history in rows]
        print_json([*facts, *map(broken_row_facts, broken)])
    elif rows or broken:
        print_schedules(Console(), rows, broken, queued)
    else:
        typer.echo("no schedules; add one with `rlad schedule add NAME CONFIG --cron '0 2 * * *'`")


@app.command()
def show(name: Name, as_json: AsJson = False, store: StoreUrl = None) -> None:
    """Show a schedule: state, next ticks, last ticks and settings."""
    from pipelines.cli.tables.schedule import print_schedule, schedule_facts

    with open_store(store) as opened:
        found, history, queued = opened.schedule(name), opened.history(name), opened.queue.entries()
    if as_json:
        print_json({**schedule_facts(found, history, queued), "settings": found.config.model_dump(mode="json")})
    else:
        print_schedule(Console(), found, history, queued)


@app.command()
def history(
    name: Name,
    last: Annotated[int, typer.Option(help="Number of ticks to show, counted from the newest.", min=1)] = 20,
    changes: Annotated[bool, typer.Option("--changes", help="Show the changes of the schedule instead.")] = False,
    as_json: AsJson = False,
    store: StoreUrl = None,
) -> None:
    """Show the last ticks: runs, accuracies, promotion decisions, reasons, and costs with their total."""
    from pipelines.cli.tables.schedule import history_facts, print_changes, print_history

    with open_store(store) as opened:
        opened.schedule(name)
        ticks, changed = opened.history(name), opened.changes.of(name)[-last:]
    if changes:
        print_changes(Console(), changed, as_json=as_json)
    elif as_json:
        print_json(history_facts(ticks)[-last:])
    else:
        print_history(Console(), name, ticks, last=last)


@app.command()
def remove(name: Name, store: StoreUrl = None) -> None:
    """Remove a schedule and its history. Run directories and the registry are kept."""
    with open_store(store) as opened:
        opened.remove(name)
    typer.echo(f"{name} is removed; its run directories and the registry are kept")


@app.command(name="run-now")
def run_now(name: Name, store: StoreUrl = None) -> None:
    """Run a schedule now, in this process, after its unfinished runs.

    Exit status 1: the run failed, or another run of the schedule is active.
    """
    from pipelines.schedules.tick import tick

    ended = _foreground(store, lambda ticker: tick(name, ticker, kind="manual"))
    _print_ends(ended)
    if not ended or ended[-1].event not in ("promoted", "kept"):
        raise typer.Exit(1)


@app.command(name="tick")
def tick_once(name: Name, store: StoreUrl = None) -> None:
    """Carry out what is due now and exit, for use in a CronJob or RayCronJob.

    Exit status 1: a run failed.
    """
    from pipelines.schedules.tick import tick

    ended = _foreground(store, lambda ticker: tick(name, ticker))
    _print_ends(ended)
    if not ended:
        typer.echo(f"{name}: nothing is due")
    if any(tick.event == "failed" for tick in ended):
        raise typer.Exit(1)


@app.command()
def serve(
    look_s: Annotated[
        float,
        typer.Option(
            help="Seconds between checks of the store for changes, unfinished runs and missed ticks.", min=0.1
        ),
    ] = 10,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port of Prometheus metrics, at /metrics.", show_default="no metrics", min=1, max=65535),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address that serves the metrics, without authentication.")
    ] = "127.0.0.1",
    trigger_port: Annotated[
        int | None,
        typer.Option(
            help="Port of POST /schedules/NAME/trigger.", show_default="no triggers over HTTP", min=1, max=65535
        ),
    ] = None,
    trigger_host: Annotated[str, typer.Option(help="Address that serves the triggers.")] = "127.0.0.1",
    trigger_token_env: Annotated[
        str, typer.Option(help="Environment variable with the bearer token of triggers.")
    ] = "RLAD_TRIGGER_TOKEN",
    store: StoreUrl = None,
) -> None:
    """Tick every schedule at its times until SIGTERM.

    On SIGTERM, active runs are stopped. The next tick of their schedule continues them.
    """
    from pipelines.monitoring.schedule_metrics import serving_metrics
    from pipelines.schedules.daemon import ScheduleDaemon
    from pipelines.schedules.http.triggers import serving_triggers

    def tick_all(ticker: Ticker) -> None:
        with ExitStack() as closing:
            if metrics_port is not None:
                closing.enter_context(
                    serving_metrics(ticker.store, clock=ticker.clock, host=metrics_host, port=metrics_port)
                )
            if trigger_port is not None:
                token = os.environ.get(trigger_token_env, "")
                closing.enter_context(serving_triggers(ticker.store, token=token, host=trigger_host, port=trigger_port))
            ScheduleDaemon(ticker, look_s=look_s).serve()

    for package in ("pipelines", "rlad"):
        logging.getLogger(package).setLevel(logging.INFO)
    _foreground(store, tick_all)


def _foreground(store: str | None, work: Callable[[Ticker], T]) -> T:
    """Run work in the foreground. SIGTERM and Ctrl-C stop it cleanly."""
    from pipelines.schedules.execution import Ticker
    from pipelines.schedules.signals import run_until_signalled

    with open_store(store) as opened:
        ticker = Ticker(store=opened, job_launcher=_job_launcher)
        return run_until_signalled(lambda: work(ticker), ticker.stop)


@contextmanager
def open_store(url: str | None) -> Iterator[ScheduleStore]:
    from sqlalchemy.exc import DBAPIError

    from pipelines.schedules.store import ScheduleStore, default_url
    from rlad.errors import ScheduleError

    store = ScheduleStore(url or default_url())
    try:
        yield store
    except DBAPIError as error:
        raise ScheduleError(
            f"schedule database failed: {error.orig or error}; the next tick continues unfinished runs"
        ) from error
    finally:
        store.close()


def _job_launcher(config: ScheduleConfig) -> RunLauncher:
    from pipelines.jobs.scheduled import RayJobLauncher

    return RayJobLauncher(config)


def _notify_settings(
    webhook_env: str | None, token_env: str | None, command: str | None, events: Sequence[str] | None
) -> dict[str, object]:
    import shlex

    settings: dict[str, object] = {
        "webhook_env": webhook_env,
        "token_env": token_env,
        "command": shlex.split(command or ""),
    }
    return {**settings, "events": list(events)} if events else settings


def _print_ends(ticks: Sequence[Tick]) -> None:
    from pipelines.cli.tables.schedule import tick_line

    for tick in ticks:
        typer.echo(tick_line(tick))


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
