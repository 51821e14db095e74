"""Lease renewal, takeover of expired leases, and detection of a lost lease."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest
import sqlalchemy as sa

from pipelines.schedules.lease import hold_lease
from pipelines.schedules.rows import open_database
from pipelines.schedules.store import ScheduleStore
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseHeldError, LeaseLostError, ScheduleError

from .conftest import Postgres

LEASE_S = 1.5


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'schedules.sqlite'}"


@pytest.fixture
def store(url: str) -> ScheduleStore:
    store = ScheduleStore(url)
    add_nightly(store)
    return store


def add_nightly(store: ScheduleStore) -> None:
    places = {"working_dir": "/srv", "directory": "/srv/runs", "registry": "/srv/registry"}
    config = ScheduleConfig(name="nightly", run={}, cron="0 2 * * *", model="kk", **places)
    store.add(config, evaluation_fingerprint="f")


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


def test_lease_is_lost_in_time_while_the_database_hangs(postgres_server: Postgres) -> None:
    """The server is frozen in the middle of a tick. The ticker ends without waiting for it."""
    store = ScheduleStore(postgres_server.url)
    add_nightly(store)
    began = time.monotonic()
    try:
        with hold_lease(store, "nightly", LEASE_S, stop=threading.Event()) as held:
            postgres_server.signal_all(signal.SIGSTOP)
            assert held.lost.wait(3 * LEASE_S)
        assert time.monotonic() - began < 4 * LEASE_S
    finally:
        postgres_server.signal_all(signal.SIGCONT)
    for thread in threading.enumerate():
        if thread.name == "lease-nightly":  # its renewal gets an answer at last
            thread.join(timeout=60)
    store.close()
    other = ScheduleStore(postgres_server.url)
    with hold_lease(other, "nightly", LEASE_S, stop=threading.Event()) as held:
        assert held.lease.token >= 2
    other.remove("nightly")
    other.close()


def test_postgresql_ends_statements_and_idle_transactions_that_take_too_long(postgres: str) -> None:
    engine = open_database(sa.make_url(postgres).update_query_dict({"options": "-c statement_timeout=150"}))
    with engine.connect() as connection:
        shown = {
            name: connection.execute(sa.text(f"SHOW {name}")).scalar_one()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
        assert shown == {
            "statement_timeout": "150ms",  # of the URL
            "lock_timeout": "30s",
            "idle_in_transaction_session_timeout": "1min",
        }
        with pytest.raises(sa.exc.DBAPIError, match="statement timeout"):
            connection.execute(sa.text("SELECT pg_sleep(20)"))
    engine.dispose()


def test_server_that_accepts_and_never_answers_is_given_up() -> None:
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, began = silent.getsockname()[1], time.monotonic()
        with pytest.raises(ScheduleError, match="cannot open the schedule store"):
            ScheduleStore(f"postgresql+psycopg://rlad@127.0.0.1:{port}/rlad?connect_timeout=2")
        assert time.monotonic() - began < 15


def expire(url: str) -> None:
    execute(url, "UPDATE rlad_schedules SET lease_expires_at = 0")


def execute(url: str, statement: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()
