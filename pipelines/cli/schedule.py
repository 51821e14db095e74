"""`rlad schedule`: runs that recur, and the students they promote."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer
from rich.console import Console

from rlad.config.schedule import TickEvent

if TYPE_CHECKING:
    from pipelines.schedules.execution import Ticker
    from pipelines.schedules.records import Tick
    from pipelines.schedules.store import ScheduleStore

app = typer.Typer(
    name="schedule",
    help="Recurring runs: a run at every tick, and a better student goes into production.",
    no_args_is_help=True,
)

T = TypeVar("T")

Name = Annotated[str, typer.Argument(help="The schedule.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="RLAD_SCHEDULES",
        metavar="URL",
        help="Database of the schedules, as sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE. [default: a file of this user's]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def schedule() -> None:
    """Recurring runs: a run at every tick, and a better student goes into production."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name for the schedule; part of its runs' names.")],
    config: Annotated[
        Path,
        typer.Argument(help="A run's YAML file. Its settings are stored: a later change of the file changes nothing."),
    ],
    cron: Annotated[str, typer.Option(help="Five cron fields, as '0 2 * * *' for every night at two.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that win over the file: key=value.")] = None,
    timezone: Annotated[str, typer.Option(help="Whose wall clock, as Europe/Berlin.")] = "Etc/UTC",
    registry: Annotated[
        str, typer.Option(envvar="RLAD_REGISTRY", help="A local path, s3://bucket/prefix or gs://bucket/prefix.")
    ] = "registry",
    model: Annotated[str | None, typer.Option(help="The registry's model. [default: NAME]", show_default=False)] = None,
    start_from: Annotated[
        str, typer.Option(help="Alias of the version to start from, or `config`: always the configuration's student.")
    ] = "production",
    margin: Annotated[
        float,
        typer.Option(help="Promote a student that is better by more than this (mean@k), and by more than chance."),
    ] = 0.0,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Prompt files, new ones too: 'prompts/*.jsonl'.", show_default=False),
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Train on files only that no finished run has seen.")
    ] = False,
    keep: Annotated[int, typer.Option(help="Versions to keep, beside those that an alias leads to.")] = 5,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that this machine is a node of, as auto; without it each run starts a local one.",
            show_default=False,
        ),
    ] = None,
    deadline_s: Annotated[float, typer.Option(help="End a run that has worked so long, over all attempts.")] = 86_400,
    retries: Annotated[int, typer.Option(help="Times a run that failed or was killed is continued.")] = 2,
    retry_wait_s: Annotated[
        float, typer.Option(help="Pause before the first retry; doubled for each further one.")
    ] = 30,
    misfire_grace_s: Annotated[float, typer.Option(help="How late a tick may be and still run.")] = 3600,
    lease_s: Annotated[
        float, typer.Option(help="A ticker that has not been heard of for so long has lost its schedule.")
    ] = 60,
    same_seed: Annotated[
        bool, typer.Option("--same-seed", help="Take the prompts in the same order in every run.")
    ] = False,
    webhook_env: Annotated[
        str | None, typer.Option(help="Environment variable with a URL to tell how ticks end.", show_default=False)
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with a bearer token for it.", show_default=False)
    ] = None,
    notify_command: Annotated[
        str | None,
        typer.Option(help="Command to tell how ticks end, with JSON as its input; no shell.", show_default=False),
    ] = None,
    notify_on: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join(get_args(TickEvent))}.", show_default=False)
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where its runs go. [default: runs/NAME]", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change the schedule of that name; its history stays.")
    ] = False,
    store: StoreUrl = None,
) -> None:
    """Run CONFIG again and again, and put a better student into production.

    Its evaluation prompts are frozen now: all students of the schedule are compared on them, and none is trained on them.
    """
    from pipelines.cli.schedule_tables import schedule_line
    from pipelines.schedules.adding import add_schedule, schedule_settings

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
        deadline_s=deadline_s,
        retries=retries,
        retry_wait_s=retry_wait_s,
        misfire_grace_s=misfire_grace_s,
        lease_s=lease_s,
        vary_seed=not same_seed,
        notify=_notify_settings(webhook_env, token_env, notify_command, notify_on),
        directory=directory or Path("runs") / name,
    )
    with _open(store) as opened:
        add_schedule(opened, settings, replace=replace)
        typer.echo(schedule_line(opened.schedule(name)))


@app.command(name="list")
def list_schedules(as_json: AsJson = False, store: StoreUrl = None) -> None:
    """List the schedules: when each ticks next, and how its last tick ended."""
    from pipelines.cli.schedule_tables import schedule_facts, schedules_table

    with _open(store) as opened:
        rows = [(each, opened.history(each.name)) for each in opened.schedules()]
    if as_json:
        _print_json([schedule_facts(each, history) for each, history in rows])
    elif rows:
        Console().print(schedules_table(rows))
    else:
        typer.echo("no schedules: `rlad schedule add NAME CONFIG --cron '0 2 * * *'` adds one")


@app.command()
def show(name: Name, as_json: AsJson = False, store: StoreUrl = None) -> None:
    """Show one schedule: its settings, its next ticks, what it has come to."""
    from pipelines.cli.schedule_tables import print_schedule, schedule_facts

    with _open(store) as opened:
        found, history = opened.schedule(name), opened.history(name)
    if as_json:
        _print_json({**schedule_facts(found, history), "settings": found.config.model_dump(mode="json")})
    else:
        print_schedule(Console(), found, history)


@app.command()
def history(
    name: Name,
    last: Annotated[int, typer.Option(help="How many ticks, counted from the newest.", min=1)] = 20,
    as_json: AsJson = False,
    store: StoreUrl = None,
) -> None:
    """Tell what became of the last ticks: runs, accuracies, decisions, and why."""
    from pipelines.cli.schedule_tables import print_history, tick_facts

    with _open(store) as opened:
        opened.schedule(name)
        ticks = opened.history(name)[-last:]
    if as_json:
        _print_json([tick_facts(each) for each in ticks])
    else:
        print_history(Console(), name, ticks)


@app.command()
def pause(name: Name, store: StoreUrl = None) -> None:
    """Start no new runs; one under way goes on."""
    with _open(store) as opened:
        opened.pause(name)
    typer.echo(f"{name} is paused; `rlad schedule resume {name}` lets it tick again")


@app.command()
def resume(name: Name, store: StoreUrl = None) -> None:
    """Tick again, from now on; what was due meanwhile is not made up for."""
    from pipelines.cli.schedule_tables import schedule_line

    with _open(store) as opened:
        opened.resume(name)
        typer.echo(schedule_line(opened.schedule(name)))


@app.command()
def remove(name: Name, store: StoreUrl = None) -> None:
    """Forget a schedule and its history. Its runs and the registry stay."""
    with _open(store) as opened:
        opened.remove(name)
    typer.echo(f"{name} is removed; its runs and the registry are as they were")


@app.command(name="run-now")
def run_now(name: Name, store: StoreUrl = None) -> None:
    """Run once now, in this process, whatever the clock says; first whatever is unfinished. Status 1 if the run fails, or another one is under way."""
    from pipelines.schedules.tick import tick

    ended = _foreground(store, lambda ticker: tick(name, ticker, kind="manual"))
    _print_ends(ended)
    if not ended or ended[-1].event not in ("promoted", "kept"):
        raise typer.Exit(1)


@app.command(name="tick")
def tick_once(name: Name, store: StoreUrl = None) -> None:
    """Do what is due now, and end: for a CronJob or RayCronJob. Status 1 only if a run fails."""
    from pipelines.schedules.tick import tick

    ended = _foreground(store, lambda ticker: tick(name, ticker))
    _print_ends(ended)
    if not ended:
        typer.echo(f"{name}: nothing is due")
    if any(each.event == "failed" for each in ended):
        raise typer.Exit(1)


@app.command()
def serve(
    look_s: Annotated[
        float,
        typer.Option(
            help="How often the store is looked at for changes, for runs to resume and for ticks to make up.", min=0.1
        ),
    ] = 10,
    store: StoreUrl = None,
) -> None:
    """Tick every schedule at its times, until SIGTERM; runs under way are then stopped, and continued by whoever ticks next."""
    from pipelines.schedules.daemon import ScheduleDaemon

    for ours in ("pipelines", "rlad"):
        logging.getLogger(ours).setLevel(logging.INFO)
    _foreground(store, lambda ticker: ScheduleDaemon(ticker, look_s=look_s).serve())


def _foreground(store: str | None, work: Callable[[Ticker], T]) -> T:
    """Work that SIGTERM and Ctrl-C end in order."""
    from pipelines.schedules.execution import Ticker
    from pipelines.schedules.signals import run_until_signalled

    with _open(store) as opened:
        ticker = Ticker(store=opened)
        return run_until_signalled(lambda: work(ticker), ticker.stop)


@contextmanager
def _open(url: str | None) -> Iterator[ScheduleStore]:
    from sqlalchemy.exc import DBAPIError

    from pipelines.schedules.store import ScheduleStore, default_url
    from rlad.errors import ScheduleError

    store = ScheduleStore(url or default_url())
    try:
        yield store
    except DBAPIError as error:
        raise ScheduleError(
            f"the schedules' database failed: {error.orig}; what was under way is continued by the next tick"
        ) from error
    finally:
        store.close()


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
    from pipelines.cli.schedule_tables import tick_line

    for each in ticks:
        typer.echo(tick_line(each))


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
