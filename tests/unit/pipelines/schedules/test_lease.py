"""Who holds a lease keeps it by renewing it, and knows when it does not hold it any more."""

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


def test_a_lease_outlasts_its_length_while_it_is_held_and_is_free_at_once_behind_the_block(
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


def test_whoever_finds_a_living_holder_is_refused_within_one_lease(store: ScheduleStore) -> None:
    stop = threading.Event()
    with hold_lease(store, "nightly", LEASE_S, stop=stop):
        began = time.monotonic()
        with (
            pytest.raises(LeaseHeldError, match="another tick of nightly is under way"),
            hold_lease(store, "nightly", LEASE_S, stop=stop),
        ):
            pass
        assert time.monotonic() - began < 2 * LEASE_S


def test_whoever_finds_a_dead_holder_waits_for_its_lease_to_run_out(store: ScheduleStore) -> None:
    dead = store.acquire("nightly", "a ticker that died", LEASE_S)
    with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
        assert held.lease.token == dead.token + 1


def test_a_waiting_ticker_can_be_told_to_end(store: ScheduleStore) -> None:
    store.acquire("nightly", "a ticker that died", 3600)
    stop = threading.Event()
    stop.set()
    with pytest.raises(LeaseHeldError), hold_lease(store, "nightly", LEASE_S, stop=stop):
        pass


def test_a_lease_that_another_took_is_known_as_lost(store: ScheduleStore, url: str) -> None:
    with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
        expire(url)
        store.acquire("nightly", "another", 3600)
        assert held.lost.wait(2 * LEASE_S)
        with pytest.raises(LeaseLostError):
            held.require()
    assert store.schedule("nightly").lease_owner == "another"  # which was not released


def test_a_store_that_does_not_answer_for_a_whole_lease_means_that_it_is_lost(store: ScheduleStore, url: str) -> None:
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
