"""`rlad schedule serve`: APScheduler's clock over the store's schedules, outside of any cluster.

The schedules are the store's, not APScheduler's: its jobs live in memory and are brought in step with the store every few seconds, so any number of daemons,
CronJobs and people may tick the same ones. That look at the store also finds what no clock tells of: runs whose ticker died, and ticks that were due while
nobody was there.
"""

from __future__ import annotations

import logging
from datetime import UTC

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.exc import SQLAlchemyError

from pipelines.schedules.cron import parse_cron
from pipelines.schedules.records import Schedule
from pipelines.schedules.tick import Ticker, is_waiting, tick
from rlad.errors import RladError, TickInterruptedError

logger = logging.getLogger(__name__)

# Runs at once; a tick that finds its schedule at work takes a thread for moments only.
_THREADS = 32
# Of one schedule: its run, and later ticks that have to find it at work to be refused.
_INSTANCES = 4


class ScheduleDaemon:
    """Ticks every schedule of a store at its times, until told to stop.

    Args:
        look_s: how often the store is looked at.
    """

    def __init__(self, ticker: Ticker, *, look_s: float = 10.0) -> None:
        self._ticker, self._look_s = ticker, look_s
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(_THREADS)},
            job_defaults={
                "coalesce": True,
                "max_instances": _INSTANCES,
                "misfire_grace_time": None,
            },  # the tick itself judges what is too late
            timezone=UTC,
        )
        self._cron_of: dict[str, tuple[str, str]] = {}

    def serve(self) -> None:
        """Tick until `stop` is set; runs under way are then stopped in order, and continued by whoever ticks next."""
        self._scheduler.start()
        logger.info("serving look_s=%g", self._look_s)
        try:
            while True:
                self._look()
                if self._ticker.stop.wait(self._look_s):
                    return
        finally:
            self._scheduler.shutdown(wait=True)

    def _look(self) -> None:
        try:
            schedules = {schedule.name: schedule for schedule in self._ticker.store.schedules()}
            for name in [name for name in self._cron_of if name not in schedules or schedules[name].is_paused]:
                self._scheduler.remove_job(name)
                del self._cron_of[name]
            for schedule in schedules.values():
                self._keep_in_step(schedule)
                if is_waiting(schedule, self._ticker):
                    job = f"{schedule.name} (found waiting)"
                    self._scheduler.add_job(
                        self._tick, args=[schedule.name], id=job, replace_existing=True, max_instances=1
                    )
        except (SQLAlchemyError, RladError) as error:
            logger.warning(
                "store_not_read error=%s", error
            )  # the jobs that are known go on; the next look may do better

    def _keep_in_step(self, schedule: Schedule) -> None:
        cron = (schedule.config.cron, schedule.config.timezone)
        if not schedule.is_paused and self._cron_of.get(schedule.name) != cron:
            self._scheduler.add_job(
                self._tick, parse_cron(*cron), args=[schedule.name], id=schedule.name, replace_existing=True
            )
            self._cron_of[schedule.name] = cron

    def _tick(self, name: str) -> None:
        try:
            for ended in tick(name, self._ticker):
                logger.info("ticked schedule=%s run=%s event=%s", name, ended.run_id, ended.event)
        except TickInterruptedError as error:
            logger.info("interrupted schedule=%s reason=%s", name, error)
        except (SQLAlchemyError, RladError) as error:
            logger.error("tick_failed schedule=%s error=%s", name, error)
