"""Output of `rlad schedule`: lists, single schedules and history, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import yaml
from rich.console import Console

from pipelines.cli.entries import Entry, print_entries, print_wrapped
from pipelines.schedules.cron import scheduled_times
from pipelines.schedules.records import BrokenRow, Schedule, Tick
from pipelines.schedules.state.changes import ScheduleChange
from pipelines.schedules.state.queue import QueueEntry
from pipelines.schedules.state.standing import standing_of
from rlad.monitoring.cost import TotalCost, total_cost

_NOTHING = "-"
_BROKEN = "broken"
_NUM_SHOWN = 3


def schedule_line(schedule: Schedule) -> str:
    """Summarise a schedule in one line, after it was changed."""
    times = _next_times(schedule, 1)
    return f"{schedule.name} ticks next at {times[0]}" if times else f"{schedule.name} is paused"


def print_schedules(
    console: Console,
    rows: Sequence[tuple[Schedule, Sequence[Tick]]],
    broken: Sequence[BrokenRow] = (),
    queued: Sequence[QueueEntry] = (),
) -> None:
    """Print all schedules: state, name and next tick of each, then queue, cron fields, model and last tick.

    Each invalid row follows, with its schedule, its problem and the remedy.
    """
    entries = []
    for schedule, history in rows:
        config, facts = schedule.config, schedule_facts(schedule, history, queued)
        details = f"cron {config.cron} ({config.timezone}), model {config.model}, last tick: {_last(history)}"
        if (place := facts["queue_place"]) is not None:
            details = f"place {place} in the queue {facts['queue']}, {details}"
        cells = (facts["state"], config.name, (facts["next"] or [_NOTHING])[0])
        entries.append(Entry(cells=cells, details=details))
    entries += [Entry(cells=(_BROKEN, row.schedule, _NOTHING), details=row.message) for row in broken]
    print_entries(console, ("state", "schedule", "next tick"), entries)


def broken_row_facts(row: BrokenRow) -> dict[str, Any]:
    """Return an invalid row as JSON."""
    return {"name": row.schedule, "state": _BROKEN, "next": [], **asdict(row)}


def schedule_facts(schedule: Schedule, history: Sequence[Tick], queued: Sequence[QueueEntry] = ()) -> dict[str, Any]:
    """Return a schedule as JSON.

    Args:
        schedule: The schedule.
        history: Its ticks, oldest first.
        queued: Ticks of all schedules that have a slot of a queue or wait for one, in the order in which they run.
    """
    config, running = schedule.config, [tick for tick in history if tick.status == "running"]
    standing = standing_of(schedule, history, queued, now=datetime.now(UTC).timestamp())
    ended = [tick for tick in history if tick.status != "running"]
    return {
        "name": config.name,
        "cron": config.cron,
        "timezone": config.timezone,
        "state": standing.state,
        "is_paused": schedule.is_paused,
        "queue": config.queue_name,
        "queue_place": standing.queue_place,
        "next": _next_times(schedule, _NUM_SHOWN),
        "model": config.model,
        "registry": config.registry,
        "directory": config.directory,
        "evaluation_fingerprint": schedule.evaluation_fingerprint,
        "running": running[0].run_id if running else None,
        "last": tick_facts(ended[-1]) if ended else None,
    }


def print_schedule(
    console: Console, schedule: Schedule, history: Sequence[Tick], queued: Sequence[QueueEntry] = ()
) -> None:
    """Print a schedule's state, last ticks and settings."""
    facts = schedule_facts(schedule, history, queued)
    place = "" if facts["queue_place"] is None else f", place {facts['queue_place']}"
    for label, value in (
        ("state", facts["state"]),
        ("queue", facts["queue"] + place),
        ("next", ", ".join(facts["next"]) or _NOTHING),
        ("model", f"{facts['model']} in {facts['registry']}"),
        ("runs", facts["directory"]),
        ("frozen evaluation", str(schedule.directory.evaluation(schedule.evaluation_fingerprint))),
    ):
        print_wrapped(console, f"{label:<17} {value}", indent=" " * 18)
    print_history(console, schedule.name, history, last=_NUM_SHOWN)
    settings = schedule.config.model_dump(mode="json")
    console.print(yaml.safe_dump(settings, sort_keys=False), highlight=False, soft_wrap=True, markup=False)


def print_history(console: Console, name: str, ticks: Sequence[Tick], *, last: int | None = None) -> None:
    """Print one line for each of the last ticks, newest last, and the cost of the runs of all ticks."""
    if not ticks:
        console.print(f"schedule {name} has not ticked yet", highlight=False, soft_wrap=True)
    for tick in ticks[-last:] if last is not None else ticks:
        print_wrapped(console, tick_line(tick))
    if (total := total_cost_of(ticks)).runs:
        print_wrapped(console, f"cost of {total.runs} {'run' if total.runs == 1 else 'runs'}: {total}")


def print_changes(console: Console, changes: Sequence[ScheduleChange], *, as_json: bool = False) -> None:
    """Print one line per change of a schedule, newest last."""
    if as_json:
        facts = [{**asdict(change), "changed_at": _time(change.changed_at)} for change in changes]
        console.print_json(data=facts)
        return
    for change in changes:
        values = [f"{key}: {before} to {after}" for key, (before, after) in change.settings.items()]
        parts = [_time(change.changed_at), change.action, change.author, "; ".join(values), change.reason]
        print_wrapped(console, "  ".join(part for part in parts if part))


def tick_line(tick: Tick) -> str:
    """Summarise a tick in one line: time, event, run, initial student, prompts, accuracies and reason."""
    parts = [_time(tick.scheduled_at), tick.event or "running"]
    if tick.run_id is not None:
        parts.append(tick.run_id)
    if tick.plan is not None:
        parts.append(f"from {f'version {tick.plan.parent}' if tick.plan.parent is not None else tick.plan.student}")
        if tick.plan.num_prompts:
            files = f"{tick.plan.files} files ({len(tick.plan.new_files)} new)"
            parts.append(f"{tick.plan.num_prompts} prompts from {files}")
    if tick.attempts > 1:
        parts.append(f"{tick.attempts} attempts")
    if tick.queued_s >= 1:
        parts.append(f"queued {timedelta(seconds=round(tick.queued_s))}")
    if tick.job is not None:
        parts.append(f"job {tick.job.id}")
    if tick.spent_s:
        parts.append(f"{timedelta(seconds=round(tick.spent_s))}")
    if tick.cost is not None:
        parts.append(f"cost {tick.cost}")
    if tick.outcome is not None:
        parts.append(f"version {tick.outcome.version}: {tick.outcome.before:.1%} to {tick.outcome.after:.1%}")
        parts += [
            f"gate {gate.name} {'passed' if gate.is_passed else 'failed'}: {gate.reason}" for gate in tick.outcome.gates
        ]
    reason = tick.reason or (tick.outcome.reason if tick.outcome is not None else None)
    if reason:
        parts.append(reason)
    if tick.notice:
        parts.append(f"notification failed: {tick.notice}")
    return "  ".join(parts)


def total_cost_of(ticks: Sequence[Tick]) -> TotalCost:
    """Return the cost of the ticks' runs, as far as they recorded one."""
    return total_cost(tick.cost for tick in ticks if tick.cost is not None)


def history_facts(ticks: Sequence[Tick]) -> list[dict[str, Any]]:
    """Return all ticks as JSON, each with the total cost of the schedule up to it."""
    return [
        {**tick_facts(tick), "total_cost": asdict(total_cost_of(ticks[:number]))}
        for number, tick in enumerate(ticks, 1)
    ]


def tick_facts(tick: Tick) -> dict[str, Any]:
    """Return a tick as JSON."""
    times = {
        key: _time(value) if (value := getattr(tick, key)) is not None else None
        for key in ("scheduled_at", "started_at", "ended_at")
    }
    return {**asdict(tick), **times, "event": tick.event}


def _next_times(schedule: Schedule, count: int) -> list[str]:
    if schedule.is_paused:
        return []
    times = scheduled_times(schedule.config, datetime.now(UTC))
    return [time.isoformat(timespec="minutes") for time in islice(times, count)]


def _last(history: Sequence[Tick]) -> str:
    ended = [tick for tick in history if tick.status != "running"]
    return f"{ended[-1].event} {_time(ended[-1].scheduled_at)}" if ended else _NOTHING


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
