"""`rlad schedule edit`, `pause`, `resume`, `trigger`, `limit` and `preview`. Registered by being imported."""

from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console

from pipelines.cli.entries import print_wrapped
from pipelines.cli.schedule import AsJson, Name, StoreUrl, app, open_store, print_json
from rlad.errors import ConfigError, ScheduleError

__all__ = ["app"]  # with the commands below

OptionalName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the schedule.", show_default=False)]
Reason = Annotated[str | None, typer.Option(help="Reason, for the history of changes.", show_default=False)]


@app.command()
def edit(
    name: Name,
    settings: Annotated[
        list[str],
        typer.Argument(help="New settings: key=value, as `rlad schedule show` names them; run.KEY for those of runs."),
    ],
    reason: Reason = None,
    store: StoreUrl = None,
) -> None:
    """Change settings of a schedule in place. `rlad schedule history NAME --changes` shows the changes."""
    from pipelines.schedules.adding import edit_schedule

    with open_store(store) as opened:
        changed = edit_schedule(opened, name, settings, author=_author(), reason=reason)
    for key, (before, after) in changed.items():
        print_wrapped(Console(), f"{key}: {before} to {after}")
    if not changed:
        typer.echo(f"{name} has these settings already")


@app.command()
def pause(
    name: OptionalName = None,
    everything: Annotated[bool, typer.Option("--all", help="Pause all schedules, also those added later.")] = False,
    reason: Reason = None,
    store: StoreUrl = None,
) -> None:
    """Pause a schedule, or all. No new runs start; an active run continues."""
    _require_one(name, everything, reason)
    with open_store(store) as opened:
        if name is None:
            opened.pauses.begin()
        else:
            opened.pause(name)
            opened.changes.record(name, "paused", author=_author(), reason=reason)
    named = "all schedules are" if name is None else f"{name} is"
    typer.echo(f"{named} paused; resume with `rlad schedule resume {name or '--all'}`")


@app.command()
def resume(
    name: OptionalName = None,
    everything: Annotated[bool, typer.Option("--all", help="End `pause --all`.")] = False,
    reason: Reason = None,
    store: StoreUrl = None,
) -> None:
    """Resume a paused schedule, or all, from now on. Ticks missed during the pause are skipped."""
    from pipelines.cli.tables.schedule import schedule_line

    _require_one(name, everything, reason)
    with open_store(store) as opened:
        if name is None:
            opened.pauses.end()
        else:
            opened.resume(name)
            opened.changes.record(name, "resumed", author=_author(), reason=reason)
        for found in opened.schedules():
            if name in (None, found.name):
                typer.echo(schedule_line(found))


@app.command()
def trigger(
    name: Name,
    key: Annotated[
        str | None,
        typer.Option(help="Identity of the event; a repeated key requests no further run.", show_default=False),
    ] = None,
    store: StoreUrl = None,
) -> None:
    """Request a run, which a ticker starts (`rlad schedule serve` or `tick`). `run-now` runs in this process."""
    with open_store(store) as opened:
        if opened.schedule(name).is_paused:
            raise ScheduleError(f"{name} is paused: resume it first, or use `rlad schedule run-now {name}`")
        is_new = opened.triggers.add(name, key=key)
    typer.echo(f"{name}: run requested" if is_new else f"{name}: {key} was requested before; nothing to do")


@app.command()
def limit(
    queue: Annotated[
        str | None,
        typer.Argument(
            help="Queue: the address of a cluster, `local`, or a name. Default: show all.", show_default=False
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of runs at once.", show_default=False)
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the limit.")] = False,
    as_json: AsJson = False,
    store: StoreUrl = None,
) -> None:
    """Limit the runs at once on a cluster, or show the limits and the ticks that wait."""
    from dataclasses import asdict

    if (queue is None) != (slots is None and not remove):
        raise ConfigError("limit requires QUEUE with --slots N or --remove, or nothing to show all limits")
    with open_store(store) as opened:
        if queue is not None:
            opened.queue.limit(queue.rstrip("/"), slots)
        limits, entries = opened.queue.limits(), opened.queue.entries()
    if as_json:
        print_json({"limits": limits, "ticks": [asdict(entry) for entry in entries]})
        return
    for name, number in limits.items():
        print_wrapped(Console(), f"{name}: {number} at once")
        for entry in entries:
            if entry.queue == name:
                state = "runs" if entry.has_slot else "waits"
                print_wrapped(Console(), f"  {state}  {entry.schedule}  priority {entry.priority}")
    if not limits:
        typer.echo("no limits; set one with `rlad schedule limit QUEUE --slots N`")


@app.command()
def preview(
    cron: Annotated[str, typer.Option(help="Five cron fields.")],
    timezone: Annotated[str, typer.Option(help="IANA time zone of the cron fields.")] = "Etc/UTC",
    start: Annotated[
        datetime | None,
        typer.Option("--from", help="First moment, on the clock of the time zone. Default: now.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of times.")] = 10,
) -> None:
    """Show the times of a cron expression, clock changes included."""
    from datetime import timedelta

    from pipelines.schedules.cron import next_fire_times, parse_cron

    parsed = parse_cron(cron, timezone)
    after = datetime.now(UTC) if start is None else start.replace(tzinfo=parsed.timezone) - timedelta(seconds=1)
    for time in islice(next_fire_times(parsed, after), count):
        typer.echo(f"{time:%a} {time.isoformat(timespec='minutes')}  {time.astimezone(UTC):%Y-%m-%dT%H:%MZ}")


def _author() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _require_one(name: str | None, everything: bool, reason: str | None) -> None:
    if (name is None) != everything:
        raise ConfigError("expected the name of a schedule, or --all")
    if everything and reason is not None:
        raise ConfigError("--all has no history for a --reason: leave it out")
