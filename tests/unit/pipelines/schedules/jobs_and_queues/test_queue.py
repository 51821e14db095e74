"""Limits across schedules: order by priority, slots of dead tickers and of jobs, and stores of earlier versions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import Lease
from pipelines.schedules.store import ScheduleStore
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseLostError

from ..conftest import NIGHT, FakeClock, Site

JOB = {"kind": "ray_job", "address": "http://ray:8265/"}


def config(name: str, **changes: object) -> ScheduleConfig:
    places = {"working_dir": "/srv", "directory": "/srv/runs", "registry": "/srv/registry"}
    fields = {"name": name, "run": {"name": "r"}, "cron": "0 2 * * *", "model": "kk", **places, **changes}
    return ScheduleConfig.model_validate(fields)


@pytest.fixture
def store(url: str) -> Iterator[ScheduleStore]:
    store = ScheduleStore(url, clock=FakeClock())
    for schedule in store.schedules():
        store.remove(schedule.name)
    for queue in store.queue.limits():
        store.queue.limit(queue, None)
    yield store
    for schedule in store.schedules():
        store.release(Lease(schedule=schedule.name, token=_token(store, schedule.name), owner=""))
        store.remove(schedule.name)
    store.close()


def _token(store: ScheduleStore, name: str) -> int:
    clock = store._clock
    assert isinstance(clock, FakeClock)
    clock.now += 1000
    return store.acquire(name, "cleaner", 1).token


def ticker(store: ScheduleStore, settings: ScheduleConfig, *, requested_at: float = 0.0) -> tuple[Lease, bool]:
    """Add a schedule, acquire its lease, and ask for a slot."""
    store.add(settings, evaluation_fingerprint="f")
    lease = store.acquire(settings.name, f"ticker of {settings.name}", 10)
    return lease, store.queue.take(lease, settings, requested_at=requested_at)


def test_queue_without_a_limit_gives_every_tick_a_slot(store: ScheduleStore) -> None:
    assert [ticker(store, config(name))[1] for name in ("a", "b", "c")] == [True, True, True]
    assert store.queue.entries() == []


def test_free_slot_goes_to_the_highest_priority_then_to_the_earliest_time(store: ScheduleStore) -> None:
    store.queue.limit("local", 1)
    _, has_slot = ticker(store, config("first"))
    assert has_slot
    waiting = {"late": (0, 2.0), "early": (0, 1.0), "urgent": (5, 3.0)}
    leases = {}
    for name, (priority, time) in waiting.items():
        leases[name], has_slot = ticker(store, config(name, priority=priority), requested_at=time)
        assert not has_slot
    assert [entry.schedule for entry in store.queue.entries()] == ["first", "urgent", "early", "late"]
    order = []
    last = "first"
    while leases:
        store.queue.free(last)
        for name in list(leases):
            if store.queue.take(leases[name], store.schedule(name).config, requested_at=waiting[name][1]):
                del leases[name]
                order.append(name)
                last = name
                break
    assert order == ["urgent", "early", "late"]


def test_queues_of_two_clusters_do_not_limit_each_other(store: ScheduleStore) -> None:
    store.queue.limit("http://ray:8265", 1)
    assert ticker(store, config("a", launcher=JOB))[1]
    assert not ticker(store, config("b", launcher=JOB))[1]
    assert ticker(store, config("c"))[1]


def test_slot_of_a_dead_ticker_is_free_unless_its_run_is_a_job(store: ScheduleStore) -> None:
    clock = store._clock
    assert isinstance(clock, FakeClock)
    for queue in ("local", "http://ray:8265"):
        store.queue.limit(queue, 1)
    assert ticker(store, config("process"))[1]
    job_lease, has_slot = ticker(store, config("job", launcher=JOB))
    assert has_slot
    clock.now += 11
    assert ticker(store, config("process2"))[1]
    assert not ticker(store, config("job2", launcher=JOB))[1]
    adopter = store.acquire("job", "another", 10)
    assert store.queue.take(adopter, config("job", launcher=JOB), requested_at=0.0)
    with pytest.raises(LeaseLostError):
        store.queue.take(job_lease, config("job", launcher=JOB), requested_at=0.0)
    again = store.acquire("process", "another", 10)
    assert not store.queue.take(again, config("process"), requested_at=0.0)


def test_lowered_limit_lets_runs_end_before_the_next_one(store: ScheduleStore) -> None:
    store.queue.limit("local", 2)
    assert [ticker(store, config(name))[1] for name in ("a", "b")] == [True, True]
    store.queue.limit("local", 1)
    lease, has_slot = ticker(store, config("c"))
    assert not has_slot
    store.queue.free("a")
    assert not store.queue.take(lease, config("c"), requested_at=0.0)
    store.queue.free("b")
    assert store.queue.take(lease, config("c"), requested_at=0.0)


def test_two_ticks_with_one_slot_run_one_after_the_other(site: Site) -> None:
    site.add(name="other", directory=str(site.folder / "other"), cron="0 2 * * *")
    site.store.queue.limit("local", 1)
    started, may_end = threading.Event(), threading.Event()

    def long_run(request: RunRequest) -> RunExit | None:
        started.set()
        return site.launcher.finish(request) if may_end.wait(0.05) else None

    site.launcher.scripts = [long_run]
    site.clock.now = NIGHT
    first = threading.Thread(target=site.tick)
    first.start()
    assert started.wait(10)
    second = threading.Thread(target=site.tick, args=("other",))
    second.start()
    while [entry.has_slot for entry in site.store.queue.entries()] != [True, False]:
        assert second.is_alive()
        second.join(0.05)
    assert len(site.launcher.requests) == 1
    site.clock.now += 3
    may_end.set()
    first.join(120)
    second.join(120)
    assert not second.is_alive()
    (waited,) = site.store.history("other")
    assert waited.status == "finished", waited.reason
    assert waited.queued_s == 3
    assert site.store.queue.entries() == []


def test_store_of_an_earlier_version_gets_the_new_tables_and_keeps_its_schedules(url: str) -> None:
    store = ScheduleStore(url)
    store.add(config("old"), evaluation_fingerprint="f")
    store.close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in ("queues", "queue_entries", "triggers", "schedule_changes", "pause"):
            connection.execute(sa.text(f"DROP TABLE rlad_{table}"))
    engine.dispose()
    store = ScheduleStore(url)
    assert store.schedule("old").config == config("old")
    store.queue.limit("local", 1)
    lease = store.acquire("old", "me", 10)
    assert store.queue.take(lease, config("old"), requested_at=0.0)
    store.release(lease)
    store.remove("old")
    store.queue.limit("local", None)
    assert store.queue.entries() == []
    store.close()
