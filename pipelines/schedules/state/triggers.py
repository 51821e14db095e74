"""Triggers of schedules: a request of an upstream system or a person that a ticker turns into a tick."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from pipelines.schedules.rows import SCHEDULES, TRIGGERS
from rlad.errors import ScheduleError

MAX_KEY_LENGTH = 200


class TriggerQueue:
    """Requests for ticks. Several requests that wait for the same schedule become one tick."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock

    def add(self, schedule: str, *, key: str | None = None) -> bool:
        """Request a tick of a schedule. Return False if the key was used before, so that nothing is requested.

        Args:
            schedule: Name of the schedule.
            key: Identity of the event, for example the version of a data set. A repeated event requests no tick.

        Raises:
            ScheduleError: The schedule does not exist, or the key is too long.
        """
        if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
            raise ScheduleError(f"a trigger's key requires 1 to {MAX_KEY_LENGTH} characters; got {len(key)}")
        own = TRIGGERS.c.schedule == schedule
        with self._engine.begin() as connection:
            lock = SCHEDULES.update().where(SCHEDULES.c.name == schedule)
            if not connection.execute(lock.values(lease_token=SCHEDULES.c.lease_token)).rowcount:
                raise ScheduleError(f"no schedule {schedule!r}: `rlad schedule list` shows the existing ones")
            if key is not None and connection.execute(sa.select(TRIGGERS.c.id).where(own, TRIGGERS.c.key == key)).all():
                return False
            # Run ids have the time in seconds, so two requests of a schedule never have the same one.
            last = connection.execute(sa.select(sa.func.max(TRIGGERS.c.requested_at)).where(own)).scalar()
            requested_at = float(int(self._clock()))
            if last is not None:
                requested_at = max(requested_at, last + 1)
            connection.execute(TRIGGERS.insert().values(schedule=schedule, requested_at=requested_at, key=key))
        return True


def consume_triggers(connection: sa.Connection, schedule: str, run_id: str | None) -> None:
    """Record the run that all waiting triggers of a schedule become."""
    waiting = (TRIGGERS.c.schedule == schedule, TRIGGERS.c.run_id.is_(None))
    connection.execute(TRIGGERS.update().where(*waiting).values(run_id=run_id))
