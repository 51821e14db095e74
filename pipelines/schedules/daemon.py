"""`rlad schedule serve`: a process that ticks every schedule of a store at its times.

The store holds the state; the daemon only keeps the next time of each schedule in memory. Several daemons, CronJobs and
manual ticks can therefore work on one store. Each look at the store also finds runs whose ticker died and ticks that
became due while no daemon ran.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from pipelines.schedules.cron import CronSchedule, next_fire_time, parse_cron
from pipelines.schedules.execution import Ticker
from pipelines.schedules.records import Schedule
from pipelines.schedules.tick import is_waiting, tick
from rlad.errors import RladError, TickInterruptedError

logger = logging.getLogger(__name__)

# Concurrent ticks: active runs, and ticks that wait for a slot of their queue.
_MAX_THREADS = 128
# Concurrent ticks per schedule: its run, and later ticks that are recorded as refused.
_MAX_TICKS_PER_SCHEDULE = 4


@dataclass(slots=True)
class _Timer:
    """Next time of one schedule.

    Attributes:
        source: Cron fields and time zone as stored; a change resets the timer.
        next: Next time; None if the fields never match again.
    """

    source: tuple[str, str]
    cron: CronSchedule
    next: datetime | None


class ScheduleDaemon:
    """Ticks every schedule of a store at its times, until `ticker.stop` is set.

    Args:
        look_s: Seconds between reads of the store.
    """

    def __init__(self, ticker: Ticker, *, look_s: float = 10.0) -> None:
        self._ticker, self._look_s = ticker, look_s
        self._timers: dict[str, _Timer] = {}
        self._ticks: dict[str, list[Future[None]]] = {}
        self._problems: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="tick")

    def serve(self) -> None:
        """Tick until `ticker.stop` is set, then stop active runs cleanly. The next ticks continue them."""
        logger.info("serving look_s=%g", self._look_s)
        next_look = time.monotonic()
        try:
            while True:
                self._start_due()
                if time.monotonic() >= next_look:
                    self._look()
                    next_look = time.monotonic() + self._look_s
                if self._ticker.stop.wait(self._idle_s(next_look)):
                    return
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _look(self) -> None:
        """Read the store: update the timers, and start ticks that are due or unfinished.

        A schedule whose rows are invalid is reported and does not tick. The others are not affected.
        """
        try:
            schedules, broken = self._ticker.store.read_schedules()
            names = {schedule.name for schedule in schedules if not schedule.is_paused}
            for name in set(self._timers) - names:
                del self._timers[name]
            problems = {row.schedule: row.message for row in broken}
            for schedule in schedules:
                try:
                    self._look_at(schedule)
                except SQLAlchemyError:
                    raise
                except Exception as error:  # noqa: BLE001  # must not stop the other schedules
                    problems[schedule.name] = str(error) or type(error).__name__
            self._report(problems)
        except (SQLAlchemyError, RladError) as error:
            # Known timers continue; the next look may succeed.
            logger.warning("store_not_read error=%s", error)

    def _look_at(self, schedule: Schedule) -> None:
        if not schedule.is_paused:
            self._update_timer(schedule)
        if not self._active(schedule.name) and is_waiting(schedule, self._ticker):
            self._start(schedule.name)

    def _report(self, problems: dict[str, str]) -> None:
        """Log the schedules that do not tick: each when its problem appears, changes or is repaired."""
        for name, problem in problems.items():
            if self._problems.get(name) != problem:
                logger.error("schedule_broken schedule=%s error=%s", name, problem)
        for name in self._problems.keys() - problems.keys():
            logger.info("schedule_repaired schedule=%s", name)
        self._problems = problems

    def _update_timer(self, schedule: Schedule) -> None:
        source = (schedule.config.cron, schedule.config.timezone)
        timer = self._timers.get(schedule.name)
        if timer is None or timer.source != source:
            cron = parse_cron(*source)
            self._timers[schedule.name] = _Timer(source=source, cron=cron, next=next_fire_time(cron, self._now()))

    def _start_due(self) -> None:
        now = self._now()
        for name, timer in self._timers.items():
            if timer.next is not None and timer.next <= now:
                timer.next = next_fire_time(timer.cron, now)
                self._start(name)

    def _idle_s(self, next_look: float) -> float:
        """Return the seconds until the next look or the next tick."""
        now = self._now()
        ticks = ((timer.next - now).total_seconds() for timer in self._timers.values() if timer.next is not None)
        return max(0.0, min(next_look - time.monotonic(), *ticks, self._look_s))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._ticker.clock(), UTC)

    def _active(self, name: str) -> list[Future[None]]:
        active = [future for future in self._ticks.get(name, []) if not future.done()]
        self._ticks[name] = active
        return active

    def _start(self, name: str) -> None:
        active = self._active(name)
        if len(active) < _MAX_TICKS_PER_SCHEDULE:
            active.append(self._threads.submit(self._tick, name))
        else:
            logger.warning("tick_dropped schedule=%s active=%d", name, len(active))

    def _tick(self, name: str) -> None:
        try:
            for ended in tick(name, self._ticker):
                logger.info("ticked schedule=%s run=%s event=%s", name, ended.run_id, ended.event)
        except TickInterruptedError as error:
            logger.info("interrupted schedule=%s reason=%s", name, error)
        except (SQLAlchemyError, RladError) as error:
            logger.error("tick_failed schedule=%s error=%s", name, error)
        except Exception:
            # The future's result is never read, so an unexpected error would be lost.
            logger.exception("tick_failed schedule=%s", name)
