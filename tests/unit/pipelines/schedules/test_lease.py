"""Lease renewal, takeover of expired leases, and detection of a lost lease."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from pipelines.schedules.lease import hold_lease
from pipelines.schedules.store import ScheduleStore
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseHeldError, LeaseLostError

LEASE_S = 1.0


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'schedules.sqlite'}"


@pytest.fixture
def store(url: str) -> ScheduleStore:
    store = ScheduleStore(url)
    places = {"working_dir": "/srv", "directory": "/srv/runs", "registry": "/srv/registry"}
    store.add(
        ScheduleConfig(name="nightly", run={}, cron="0 2 * * *", model="kk", **places), evaluation_fingerprint="f"
    )
    return store


def test_lease_is_renewed_inside_the_block_and_released_after_it(
    store: ScheduleStore,
) -> None:
    stop = threading.Event()
    with hold_lease(store, "nightly", LEASE_S, stop=stop) as held:
        deadline = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < deadline:
            with pytest.raises(LeaseHeldError):
                store.acquire("nightly", "another", LEASE_S)
            time.sleep(0.05)
        held.require()
        assert not held.lost.is_set()
    store.acquire("nightly", "another", LEASE_S)


def test_live_holder_causes_refusal_within_one_lease(store: ScheduleStore) -> None:
    stop = threading.Event()
    with hold_lease(store, "nightly", LEASE_S, stop=stop):
        began = time.monotonic()
        with (
            pytest.raises(LeaseHeldError, match="another tick of nightly is active"),
            hold_lease(store, "nightly", LEASE_S, stop=stop),
        ):
            pass
        assert time.monotonic() - began < 2 * LEASE_S


def test_expired_lease_of_a_dead_holder_is_taken_over(store: ScheduleStore) -> None:
    dead = store.acquire("nightly", "a ticker that died", LEASE_S)
    with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
        assert held.lease.token == dead.token + 1


def test_waiting_ticker_can_be_stopped(store: ScheduleStore) -> None:
    store.acquire("nightly", "a ticker that died", 3600)
    stop = threading.Event()
    stop.set()
    with pytest.raises(LeaseHeldError), hold_lease(store, "nightly", LEASE_S, stop=stop):
        pass


def test_lease_taken_by_another_ticker_is_detected_as_lost(store: ScheduleStore, url: str) -> None:
    with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
        expire(url)
        store.acquire("nightly", "another", 3600)
        assert held.lost.wait(2 * LEASE_S)
        with pytest.raises(LeaseLostError):
            held.require()
    assert store.schedule("nightly").lease_owner == "another"  # releasing a lost lease has no effect


def test_lease_is_lost_if_the_store_does_not_answer_for_its_duration(store: ScheduleStore, url: str) -> None:
    with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
        began = time.monotonic()
        execute(url, "ALTER TABLE rlad_schedules RENAME TO gone")
        assert held.lost.wait(3 * LEASE_S)
        assert time.monotonic() - began > 0.5 * LEASE_S
        execute(url, "ALTER TABLE gone RENAME TO rlad_schedules")


def expire(url: str) -> None:
    execute(url, "UPDATE rlad_schedules SET lease_expires_at = 0")


def execute(url: str, statement: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()
