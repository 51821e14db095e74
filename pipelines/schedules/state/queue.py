"""Queues of runs: at most N at once on a cluster, in order of priority.

A tick takes a slot before its run starts and frees it when it ends. The slot of a process ends with its ticker's lease;
the slot of a job is kept for the ticker that adopts it. Every decision is made in a transaction that holds the row of
the queue, so that concurrent tickers never exceed the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from pipelines.schedules.records import Lease
from pipelines.schedules.rows import QUEUE_ENTRIES, QUEUES, SCHEDULES
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseLostError


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """Tick that waits for a slot of a queue, or has one.

    Attributes:
        schedule: Name of the schedule.
        queue: Name of the queue.
        priority: Priority; larger values come first.
        requested_at: Scheduled time of the tick. Earlier times come first within a priority.
        has_slot: Whether the tick may run.
    """

    schedule: str
    queue: str
    priority: int
    requested_at: float
    has_slot: bool


class RunQueue:
    """Queues of a schedule store."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock

    def limit(self, queue: str, slots: int | None) -> None:
        """Set the number of runs at once on a queue; None removes the limit. Active runs continue."""
        with self._engine.begin() as connection:
            connection.execute(QUEUES.delete().where(QUEUES.c.name == queue))
            if slots is not None:
                connection.execute(QUEUES.insert().values(name=queue, slots=slots))

    def limits(self) -> dict[str, int]:
        """Return the number of slots by queue, for the queues that have a limit."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(QUEUES).order_by(QUEUES.c.name)).all()
        return {row.name: row.slots for row in rows}

    def entries(self) -> list[QueueEntry]:
        """Return the ticks that have a slot or wait for one, in the order in which they run."""
        with self._engine.connect() as connection:
            return _live_entries(connection, self._clock())

    def take(self, lease: Lease, config: ScheduleConfig, *, requested_at: float) -> bool:
        """Take a slot for the tick of a schedule, or keep its place in the queue. Return whether it has a slot.

        Raises:
            LeaseLostError: Another ticker holds the lease.
        """
        queue, own = config.queue_name, QUEUE_ENTRIES.c.schedule == lease.schedule
        with self._engine.begin() as connection:
            token = sa.select(SCHEDULES.c.lease_token).where(SCHEDULES.c.name == lease.schedule)
            if connection.execute(token).scalar() != lease.token:
                raise LeaseLostError(f"{lease.owner} has lost the lease of {lease.schedule} to another ticker")
            lock = QUEUES.update().where(QUEUES.c.name == queue).values(slots=QUEUES.c.slots)
            if not connection.execute(lock).rowcount:
                connection.execute(QUEUE_ENTRIES.delete().where(own))
                return True
            before = connection.execute(sa.select(QUEUE_ENTRIES).where(own)).first()
            has_slot = before is not None and before.has_slot and before.queue == queue
            # The process of an earlier ticker has ended, and its slot may be taken.
            if before is not None and has_slot and (before.is_job or before.lease_token == lease.token):
                connection.execute(QUEUE_ENTRIES.update().where(own).values(lease_token=lease.token))
                return True
            connection.execute(QUEUE_ENTRIES.delete().where(own))
            values = {
                "schedule": lease.schedule,
                "queue": queue,
                "priority": config.priority,
                "requested_at": requested_at,
                "has_slot": False,
                "is_job": config.launcher.kind != "process",
                "lease_token": lease.token,
            }
            connection.execute(QUEUE_ENTRIES.insert().values(**values))
            slots = connection.execute(sa.select(QUEUES.c.slots).where(QUEUES.c.name == queue)).scalar_one()
            entries = [entry for entry in _live_entries(connection, self._clock()) if entry.queue == queue]
            waiting = [entry.schedule for entry in entries if not entry.has_slot]
            free = max(0, slots - (len(entries) - len(waiting)))
            if lease.schedule not in waiting[:free]:
                return False
            connection.execute(QUEUE_ENTRIES.update().where(own).values(has_slot=True))
            return True

    def free(self, schedule: str) -> None:
        """Free the slot of a schedule, or remove it from its queue."""
        with self._engine.begin() as connection:
            connection.execute(QUEUE_ENTRIES.delete().where(QUEUE_ENTRIES.c.schedule == schedule))


def _live_entries(connection: sa.Connection, now: float) -> list[QueueEntry]:
    """Return the entries whose ticker is alive, and those of jobs that wait for a ticker."""
    query = sa.select(QUEUE_ENTRIES, SCHEDULES.c.lease_expires_at, SCHEDULES.c.lease_token.label("held")).join(
        SCHEDULES, SCHEDULES.c.name == QUEUE_ENTRIES.c.schedule
    )
    entries = []
    for row in connection.execute(query):
        is_held = row.held == row.lease_token and (row.lease_expires_at or 0.0) >= now
        if is_held or (row.has_slot and row.is_job):
            entries.append(
                QueueEntry(
                    schedule=row.schedule,
                    queue=row.queue,
                    priority=row.priority,
                    requested_at=row.requested_at,
                    has_slot=bool(row.has_slot),
                )
            )
    return sorted(entries, key=lambda entry: (not entry.has_slot, -entry.priority, entry.requested_at, entry.schedule))
