"""What `rlad schedule` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from pipelines.schedules.cron import next_fire_times, parse_cron
from pipelines.schedules.records import Schedule, Tick

_NOTHING = "-"
_NEXT = 3


def schedule_line(schedule: Schedule) -> str:
    """One line after a change."""
    times = _next_times(schedule, 1)
    return f"{schedule.name} ticks next at {times[0]}" if times else f"{schedule.name} is paused"


def schedules_table(rows: Sequence[tuple[Schedule, Sequence[Tick]]]) -> Table:
    """All schedules, a line each."""
    table = Table()
    for column in ("schedule", "cron", "time zone", "next", "now", "last tick", "model"):
        table.add_column(column)
    for schedule, history in rows:
        config, facts = schedule.config, schedule_facts(schedule, history)
        table.add_row(
            config.name,
            config.cron,
            config.timezone,
            (facts["next"] or [_NOTHING])[0],
            facts["state"],
            _last(history),
            config.model,
        )
    return table


def schedule_facts(schedule: Schedule, history: Sequence[Tick]) -> dict[str, Any]:
    """A schedule as JSON."""
    config, running = schedule.config, [tick for tick in history if tick.status == "running"]
    # A tick that nobody holds the lease for is unfinished: its ticker died, and the next one resumes it.
    is_held = schedule.lease_expires_at is not None and schedule.lease_expires_at > datetime.now(UTC).timestamp()
    state = "running" if is_held else "unfinished" if running else "paused" if schedule.is_paused else "waiting"
    ended = [tick for tick in history if tick.status != "running"]
    return {
        "name": config.name,
        "cron": config.cron,
        "timezone": config.timezone,
        "state": state,
        "is_paused": schedule.is_paused,
        "next": _next_times(schedule, _NEXT),
        "model": config.model,
        "registry": config.registry,
        "directory": config.directory,
        "evaluation_fingerprint": schedule.evaluation_fingerprint,
        "running": running[0].run_id if running else None,
        "last": tick_facts(ended[-1]) if ended else None,
    }


def print_schedule(console: Console, schedule: Schedule, history: Sequence[Tick]) -> None:
    """Facts, last ticks, settings."""
    facts = schedule_facts(schedule, history)
    table = Table(show_header=False, box=None)
    for label, value in (
        ("state", facts["state"]),
        ("next", ", ".join(facts["next"]) or _NOTHING),
        ("model", f"{facts['model']} in {facts['registry']}"),
        ("runs", facts["directory"]),
        ("frozen evaluation", str(schedule.directory.evaluation(schedule.evaluation_fingerprint))),
    ):
        table.add_row(label, value)
    console.print(table)
    print_history(console, schedule.name, history[-_NEXT:])
    settings = schedule.config.model_dump(mode="json")
    console.print(yaml.safe_dump(settings, sort_keys=False), highlight=False, soft_wrap=True, markup=False)


def print_history(console: Console, name: str, ticks: Sequence[Tick]) -> None:
    """A line a tick, the newest last, and why each ended so."""
    if not ticks:
        console.print(f"{name} has not ticked yet", highlight=False)
    for each in ticks:
        console.print(tick_line(each), highlight=False, soft_wrap=True, markup=False)


def tick_line(tick: Tick) -> str:
    """One tick in one line: when, how it ended, its run, from where to where, and why."""
    parts = [_time(tick.scheduled_at), tick.event or "running"]
    if tick.run_id is not None:
        parts.append(tick.run_id)
    if tick.plan is not None:
        parts.append(f"from {f'version {tick.plan.parent}' if tick.plan.parent is not None else tick.plan.student}")
        parts += (
            [f"{tick.plan.num_prompts} prompts of {tick.plan.files} files, {len(tick.plan.new_files)} new"]
            if tick.plan.num_prompts
            else []
        )
    if tick.attempts > 1:
        parts.append(f"{tick.attempts} attempts")
    if tick.spent_s:
        parts.append(f"{timedelta(seconds=round(tick.spent_s))}")
    if tick.outcome is not None:
        parts.append(f"version {tick.outcome.version}: {tick.outcome.before:.1%} to {tick.outcome.after:.1%}")
    why = tick.reason or (tick.outcome.reason if tick.outcome is not None else None)
    told = [f"could not tell: {tick.notice}"] if tick.notice else []
    return "  ".join([*parts, *([why] if why else []), *told])


def tick_facts(tick: Tick) -> dict[str, Any]:
    """A tick as JSON."""
    times = {
        key: _time(value) if (value := getattr(tick, key)) is not None else None
        for key in ("scheduled_at", "started_at", "ended_at")
    }
    return {**asdict(tick), **times, "event": tick.event}


def _next_times(schedule: Schedule, count: int) -> list[str]:
    if schedule.is_paused:
        return []
    trigger = parse_cron(schedule.config.cron, schedule.config.timezone)
    return [each.isoformat(timespec="minutes") for each in islice(next_fire_times(trigger, datetime.now(UTC)), count)]


def _last(history: Sequence[Tick]) -> str:
    ended = [tick for tick in history if tick.status != "running"]
    return f"{ended[-1].event} {_time(ended[-1].scheduled_at)}" if ended else _NOTHING


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
