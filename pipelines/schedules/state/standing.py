"""State of a schedule, from its row, its ticks and the queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.schedules.records import Schedule, Tick
from pipelines.schedules.state.queue import QueueEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """State of a schedule.

    Attributes:
        state: `queued` (its tick waits for a slot), `running`, `unfinished` (its ticker died, and the next one
            continues the tick), `paused` or `waiting`.
        queue_place: Place among the waiting ticks of its queue, from 1; None unless it is queued.
    """

    state: Literal["queued", "running", "unfinished", "paused", "waiting"]
    queue_place: int | None = None


def standing_of(schedule: Schedule, history: Sequence[Tick], queued: Sequence[QueueEntry], *, now: float) -> Standing:
    """Return the state of a schedule.

    Args:
        schedule: The schedule.
        history: Its ticks.
        queued: Ticks of all schedules that have a slot of a queue or wait for one, in the order in which they run.
        now: Present time, seconds since the epoch.
    """
    config = schedule.config
    waiting = [entry.schedule for entry in queued if entry.queue == config.queue_name and not entry.has_slot]
    if config.name in waiting:
        return Standing(state="queued", queue_place=waiting.index(config.name) + 1)
    if schedule.lease_expires_at is not None and schedule.lease_expires_at > now:
        return Standing(state="running")
    if any(tick.status == "running" for tick in history):
        return Standing(state="unfinished")
    return Standing(state="paused" if schedule.is_paused else "waiting")
