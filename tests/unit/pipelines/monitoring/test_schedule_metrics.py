"""`/metrics` of the schedule daemon shows what the store holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.monitoring.schedule_metrics import serving_metrics
from pipelines.schedules.records import RunOutcome
from pipelines.schedules.store import ScheduleStore
from rlad.config.schedule import ScheduleConfig
from rlad.errors import ConfigError

# 2026-05-11T02:00:00Z.
NIGHT, DAY = 1778464800.0, 86_400.0


class Clock:
    now = NIGHT - 60

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ScheduleStore]:
    """A store with a schedule at 2 o'clock every night."""
    store = ScheduleStore(f"sqlite:///{tmp_path / 'schedules.sqlite'}", clock=clock)
    places = {"working_dir": "/srv", "directory": "/srv/runs", "registry": "/srv/registry"}
    config = ScheduleConfig(name="nightly", run={"name": "r"}, cron="0 2 * * *", model="kk", **places)
    store.add(config, evaluation_fingerprint="f1")
    yield store
    store.close()


def run_tick(store: ScheduleStore, clock: Clock, *, after: float, is_promoted: bool) -> None:
    """Record a tick at the present time that ends an hour later."""
    lease = store.acquire("nightly", "me", 10 * 3600)
    tick = store.open_tick(lease, kind="cron", scheduled_at=clock.now, run_id=f"r{clock.now}", status="running")
    outcome = RunOutcome(
        before=0.5,
        after=after,
        version=2,
        incumbent=1,
        incumbent_source="its own run",
        is_promoted=is_promoted,
        reason="better",
        difference=after - 0.5,
        interval=None,
    )
    clock.now += 3600
    store.save(lease, replace(tick, status="finished", ended_at=clock.now, outcome=outcome))
    store.release(lease)


def scraped(port: int) -> dict[tuple[str, ...], float]:
    """Return the values by name, schedule or queue, and event or state."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    return {
        (
            sample.name,
            *(sample.labels[key] for key in ("schedule", "queue", "event", "state") if key in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_follow_the_store(store: ScheduleStore, clock: Clock) -> None:
    with serving_metrics(store, clock=clock, host="127.0.0.1", port=0) as port:
        new = scraped(port)
        clock.now = NIGHT
        run_tick(store, clock, after=0.75, is_promoted=True)
        first = scraped(port)
        clock.now = NIGHT + DAY
        run_tick(store, clock, after=0.7, is_promoted=False)
        second = scraped(port)
        store.pause("nightly")
        paused = scraped(port)
    assert new["rlad_schedule_next_tick_timestamp_seconds", "nightly"] == NIGHT
    assert ("rlad_schedule_last_accuracy", "nightly") not in new
    assert first["rlad_schedule_ticks", "nightly", "promoted"] == 1
    assert first["rlad_schedule_ticks", "nightly", "kept"] == 0
    assert first["rlad_schedule_next_tick_timestamp_seconds", "nightly"] == NIGHT + DAY
    assert first["rlad_schedule_last_accuracy", "nightly"] == 0.75
    assert second["rlad_schedule_ticks", "nightly", "kept"] == 1
    assert second["rlad_schedule_last_accuracy", "nightly"] == 0.7
    assert second["rlad_schedule_last_end_timestamp_seconds", "nightly"] == NIGHT + DAY + 3600
    assert (second["rlad_schedule_paused", "nightly"], paused["rlad_schedule_paused", "nightly"]) == (0, 1)
    assert ("rlad_schedule_next_tick_timestamp_seconds", "nightly") not in paused
    assert second["rlad_schedule_broken_rows",] == 0


def test_queues_with_a_limit_have_their_slots_and_ticks(store: ScheduleStore, clock: Clock) -> None:
    other = store.schedule("nightly").config.model_copy(update={"name": "other"})
    store.add(other, evaluation_fingerprint="f1")
    with serving_metrics(store, clock=clock, host="127.0.0.1", port=0) as port:
        assert not [key for key in scraped(port) if key[0].startswith("rlad_schedule_queue")]
        store.queue.limit("local", 1)
        empty = scraped(port)
        for name in ("nightly", "other"):
            store.queue.take(store.acquire(name, "me", 3600), store.schedule(name).config, requested_at=clock.now)
        full = scraped(port)
    ticks = "rlad_schedule_queue_ticks"
    assert empty["rlad_schedule_queue_slots", "local"] == 1
    assert (empty[ticks, "local", "running"], empty[ticks, "local", "waiting"]) == (0, 0)
    assert (full[ticks, "local", "running"], full[ticks, "local", "waiting"]) == (1, 1)


def test_port_in_use_is_refused(store: ScheduleStore, clock: Clock) -> None:
    with (
        serving_metrics(store, clock=clock, host="127.0.0.1", port=0) as port,
        pytest.raises(ConfigError, match=rf"cannot serve metrics at 127.0.0.1:{port}.*--metrics-port"),
        serving_metrics(store, clock=clock, host="127.0.0.1", port=port),
    ):
        pass
