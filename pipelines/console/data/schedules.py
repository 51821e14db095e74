"""Schedules with their next ticks and history, from the schedule store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from sqlalchemy.exc import DBAPIError

from pipelines.console.problems import NotFoundError
from pipelines.schedules.cron import next_fire_times, parse_cron
from pipelines.schedules.records import BrokenRow, Schedule, Tick
from pipelines.schedules.state.standing import standing_of
from pipelines.schedules.store import ScheduleStore
from rlad.errors import ScheduleError
from rlad.monitoring.cost import TotalCost, total_cost


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """A schedule as the pages show it.

    Attributes:
        schedule: The schedule.
        state: State, as in `Standing`.
        next: Next scheduled times in the schedule's time zone; empty while it is paused.
        history: Ticks, newest first.
    """

    schedule: Schedule
    state: str
    next: Sequence[datetime]
    history: Sequence[Tick]

    @property
    def cost(self) -> TotalCost:
        """Cost of the runs of all ticks, as far as they recorded one."""
        return total_cost(tick.cost for tick in self.history if tick.cost is not None)


class Schedules:
    """Reader of a schedule store."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: Database URL of the store.
        """
        self._url = url

    def all(self, *, num_next: int = 3) -> tuple[list[ScheduleView], list[BrokenRow]]:
        """Return all schedules by name, and the invalid rows of the store.

        Raises:
            ScheduleError: The store does not answer.
        """
        with self._opened() as store:
            schedules, broken = store.read_schedules()
            return [_view(store, schedule, num_next) for schedule in schedules], broken

    def one(self, name: str, *, num_next: int = 5) -> ScheduleView:
        """Return one schedule.

        Raises:
            NotFoundError: There is no such schedule.
            ScheduleError: The store does not answer.
        """
        with self._opened() as store:
            found = [schedule for schedule in store.schedules() if schedule.name == name]
            if not found:
                raise NotFoundError(f"no schedule {name[:80]!r}")
            return _view(store, found[0], num_next)

    @contextmanager
    def _opened(self) -> Iterator[ScheduleStore]:
        store = ScheduleStore(self._url)
        try:
            yield store
        except DBAPIError as error:
            raise ScheduleError(f"schedule database failed: {error.orig or error}") from error
        finally:
            store.close()


def _view(store: ScheduleStore, schedule: Schedule, num_next: int) -> ScheduleView:
    history, now = store.history(schedule.name), datetime.now(UTC)
    standing = standing_of(schedule, history, store.queue.entries(), now=now.timestamp())
    times = next_fire_times(parse_cron(schedule.config.cron, schedule.config.timezone), now)
    return ScheduleView(
        schedule=schedule,
        state=standing.state,
        next=[] if schedule.is_paused else list(islice(times, num_next)),
        history=history[::-1],
    )
