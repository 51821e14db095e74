"""`/metrics` of `rlad schedule serve`: what the store holds, read at each scrape.

Any daemon of a store can answer for all its schedules, also for ticks of CronJobs and of daemons that have ended.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipelines.schedules.cron import scheduled_times
from pipelines.schedules.records import Schedule, Tick
from pipelines.schedules.store import ScheduleStore
from rlad.config.schedule import TickEvent
from rlad.errors import ConfigError
from rlad.monitoring.metric import Metric
from rlad.monitoring.table import METRICS

logger = logging.getLogger(__name__)

_EVENTS: tuple[str, ...] = (*get_args(TickEvent), "running")


class ScheduleCollector(Collector):
    """Reads the store when it is asked for the metrics."""

    def __init__(self, store: ScheduleStore, *, clock: Callable[[], float]) -> None:
        """
        Args:
            store: The store.
            clock: Present time, seconds since the epoch.
        """
        self._store, self._clock = store, clock

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics without values, so that registering reads nothing."""
        return iter(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics of all valid schedules."""
        families = self._families()
        schedules, _ = self._store.read_schedules()
        for schedule in schedules:
            self._add(families, schedule, self._store.history(schedule.name))
        families["rlad_schedule_broken_rows"].add_metric([], len(self._store.broken_rows()))
        self._add_queues(families)
        return iter(families.values())

    def _add(self, families: dict[str, GaugeMetricFamily], schedule: Schedule, ticks: list[Tick]) -> None:
        name = schedule.name
        numbers: Counter[str] = Counter(tick.event or "running" for tick in ticks)
        for event in _EVENTS:
            families["rlad_schedule_ticks"].add_metric([name, event], numbers[event])
        families["rlad_schedule_paused"].add_metric([name], float(schedule.is_paused))
        if not schedule.is_paused:
            following = next(scheduled_times(schedule.config, datetime.fromtimestamp(self._clock(), UTC)), None)
            if following is not None:
                families["rlad_schedule_next_tick_timestamp_seconds"].add_metric([name], following.timestamp())
        ends = [tick.ended_at for tick in ticks if tick.ended_at is not None]
        if ends:
            families["rlad_schedule_last_end_timestamp_seconds"].add_metric([name], max(ends))
        accuracies = [tick.outcome.after for tick in ticks if tick.status == "finished" and tick.outcome is not None]
        if accuracies:
            families["rlad_schedule_last_accuracy"].add_metric([name], accuracies[-1])

    def _add_queues(self, families: dict[str, GaugeMetricFamily]) -> None:
        entries = self._store.queue.entries()
        for queue, slots in self._store.queue.limits().items():
            running = [entry.has_slot for entry in entries if entry.queue == queue]
            families["rlad_schedule_queue_slots"].add_metric([queue], slots)
            families["rlad_schedule_queue_ticks"].add_metric([queue, "running"], sum(running))
            families["rlad_schedule_queue_ticks"].add_metric([queue, "waiting"], len(running) - sum(running))

    def _families(self) -> dict[str, GaugeMetricFamily]:
        return {each.name: _family(each) for each in METRICS if each.source == "schedule"}


@contextmanager
def serving_metrics(store: ScheduleStore, *, clock: Callable[[], float], host: str, port: int) -> Iterator[int]:
    """Serve the metrics of a store over HTTP during the block, and yield the port.

    Args:
        store: The store.
        clock: Present time, seconds since the epoch.
        host: Address to listen on. Clients are not authenticated.
        port: Port; 0 chooses a free one.

    Raises:
        ConfigError: The address is in use or does not exist.
    """
    registry = CollectorRegistry()
    registry.register(ScheduleCollector(store, clock=clock))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics at {host}:{port}: {error.strerror}. Choose another --metrics-port"
        ) from error
    try:
        logger.info("metrics=serving host=%s port=%d", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _family(each: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(each.name, each.description, labels=each.labels)
