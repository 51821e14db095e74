"""Pause of all schedules of a store."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from pipelines.schedules.rows import PAUSES, SCHEDULES


class GlobalPause:
    """Pause of all schedules, also of those that are added while it lasts."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock

    def begin(self) -> None:
        """Start no new runs. Active runs continue."""
        with self._engine.begin() as connection:
            connection.execute(PAUSES.delete())
            connection.execute(PAUSES.insert().values(paused_at=self._clock()))

    def end(self) -> None:
        """Tick again. Times that passed are skipped, and schedules that are paused by themselves stay so."""
        with self._engine.begin() as connection:
            if connection.execute(PAUSES.delete()).rowcount:
                connection.execute(SCHEDULES.update().values(active_since=self._clock()))

    def since(self) -> float | None:
        """Return the time at which all schedules were paused, in seconds since the epoch; None if they are not."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(PAUSES.c.paused_at)).scalar()
