"""Schedule store on SQLite and PostgreSQL: round trips, fencing of lost leases, and two racing processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.schedules.records import CronHistory, FindDue, Lease, NewTick, Schedule, SeenFile, Tick, TickKind
from pipelines.schedules.store import ScheduleStore, default_url
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseHeldError, LeaseLostError, ScheduleError

ROUNDS = 10


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def config(name: str = "nightly", margin: float = 0.0) -> ScheduleConfig:
    places = {"working_dir": "/srv", "directory": "/srv/runs", "registry": "/srv/registry"}
    return ScheduleConfig(name=name, run={"name": "r"}, cron="0 2 * * *", model="kk", margin=margin, **places)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[ScheduleStore]:
    store = ScheduleStore(url, clock=clock)
    for schedule in store.schedules():
        clock.now = max(clock.now, (schedule.lease_expires_at or 0) + 1)
        store.remove(schedule.name)
    store.add(config(), evaluation_fingerprint="f1")
    yield store
    store.close()


def opened(store: ScheduleStore, clock: Clock, run_id: str = "r1") -> tuple[Lease, Tick]:
    lease = store.acquire("nightly", "me", 10)
    return lease, store.open_tick(lease, kind="cron", scheduled_at=clock.now, run_id=run_id, status="running")


def test_schedule_is_read_back_as_stored(store: ScheduleStore, clock: Clock) -> None:
    found = store.schedule("nightly")
    assert (found.config, found.evaluation_fingerprint, found.is_paused, found.active_since) == (
        config(),
        "f1",
        False,
        clock.now,
    )


def test_existing_name_requires_replace_which_keeps_the_history(store: ScheduleStore, clock: Clock) -> None:
    with pytest.raises(ScheduleError, match="--replace"):
        store.add(config(margin=0.5), evaluation_fingerprint="f2")
    opened(store, clock)
    store.add(config(margin=0.5), evaluation_fingerprint="f2", replace=True)
    assert store.schedule("nightly").config.margin == 0.5
    assert len(store.history("nightly")) == 1


def test_unknown_name_lists_the_existing_schedules(store: ScheduleStore) -> None:
    with pytest.raises(ScheduleError, match="no schedule 'hourly'.*existing schedules: nightly"):
        store.schedule("hourly")


def test_held_lease_is_refused_until_it_expires_and_tokens_increase(store: ScheduleStore, clock: Clock) -> None:
    first = store.acquire("nightly", "a", 10)
    clock.now += 10
    with pytest.raises(LeaseHeldError, match=r"active \(a\)"):
        store.acquire("nightly", "b", 10)
    clock.now += 0.1
    second = store.acquire("nightly", "b", 10)
    store.release(second)
    third = store.acquire("nightly", "c", 10)
    assert first.token < second.token < third.token


def test_renewed_lease_stays_held(store: ScheduleStore, clock: Clock) -> None:
    lease = store.acquire("nightly", "a", 10)
    clock.now += 9
    store.renew(lease, 10)
    clock.now += 9
    with pytest.raises(LeaseHeldError):
        store.acquire("nightly", "b", 10)


def test_writes_with_an_old_token_fail(store: ScheduleStore, clock: Clock) -> None:
    old, tick = opened(store, clock)
    clock.now += 11
    store.acquire("nightly", "another", 10)
    with pytest.raises(LeaseLostError, match="to another ticker"):
        store.save(old, replace(tick, status="finished"), seen=[SeenFile(path="a", sha256="1")])
    with pytest.raises(LeaseLostError):
        store.open_tick(old, kind="cron", scheduled_at=1.0, run_id="r2", status="running")
    with pytest.raises(LeaseLostError):
        store.renew(old, 10)
    store.release(old)  # held by another ticker now
    assert store.schedule("nightly").lease_owner == "another"
    assert store.history("nightly") == [tick]
    assert store.seen_files("nightly") == set()


def test_expired_lease_without_a_new_holder_can_still_write(store: ScheduleStore, clock: Clock) -> None:
    lease, tick = opened(store, clock)
    clock.now += 11
    saved = store.save(lease, replace(tick, status="finished"))
    assert store.history("nightly") == [saved]


def test_run_id_is_unique(store: ScheduleStore, clock: Clock) -> None:
    lease, _ = opened(store, clock)
    with pytest.raises(ScheduleError, match="run r1 already exists"):
        store.open_tick(lease, kind="cron", scheduled_at=clock.now, run_id="r1", status="running")


def due_at(scheduled_at: float, kind: TickKind = "cron") -> FindDue:
    """Return a function that finds this time due until its tick was opened."""
    new = NewTick(kind=kind, scheduled_at=scheduled_at, run_id=f"{kind}-{scheduled_at:.0f}", status="running")

    def find_due(_: Schedule, history: CronHistory) -> NewTick | None:
        return new if kind == "manual" or (history.last_opened or 0.0) < scheduled_at else None

    return find_due


def test_refused_ticks_have_no_run_and_are_recorded_once_per_cron_time(store: ScheduleStore, clock: Clock) -> None:
    for find_due in (due_at(500.0), due_at(500.0), due_at(600.0), due_at(1.0, "manual"), due_at(1.0, "manual")):
        store.record_refused("nightly", find_due, reason="busy")
    history = store.history("nightly")
    assert [(tick.kind, tick.scheduled_at) for tick in history] == [
        ("cron", 500.0),
        ("cron", 600.0),
        ("manual", 1.0),
        ("manual", 1.0),
    ]
    assert {(tick.status, tick.run_id, tick.reason, tick.ended_at) for tick in history} == {
        ("refused", None, "busy", clock.now)
    }
    assert store.unfinished("nightly") == []


def test_refused_time_is_still_due_and_an_opened_time_is_not(store: ScheduleStore) -> None:
    store.record_refused("nightly", due_at(500.0), reason="busy")
    assert store.cron_history("nightly") == CronHistory(last_opened=None, last_refused=500.0)
    lease, opened = store.acquire_and_open("nightly", "me", 10, due_at(500.0))
    assert opened is not None
    assert (opened.run_id, opened.status) == ("cron-500", "running")
    assert store.unfinished("nightly") == [opened]
    assert store.record_refused("nightly", due_at(500.0), reason="busy") is None
    assert store.open_due(lease, due_at(500.0)) is None
    assert store.cron_history("nightly") == CronHistory(last_opened=500.0, last_refused=500.0)


def test_no_tick_is_opened_with_the_lease_while_another_is_unfinished(store: ScheduleStore, clock: Clock) -> None:
    lease, tick = opened(store, clock)
    store.release(lease)
    lease, found = store.acquire_and_open("nightly", "me", 10, due_at(2000.0))
    assert found is None
    store.save(lease, replace(tick, status="finished"))
    found = store.open_due(lease, due_at(2000.0))
    assert found is not None
    assert found.run_id == "cron-2000"


def test_lease_is_not_acquired_if_its_tick_cannot_be_opened(store: ScheduleStore, clock: Clock) -> None:
    lease, tick = opened(store, clock, run_id="cron-2000")
    store.save(lease, replace(tick, status="finished"))
    store.release(lease)
    with pytest.raises(ScheduleError, match="run cron-2000 already exists"):
        store.acquire_and_open("nightly", "me", 10, due_at(2000.0))
    assert store.schedule("nightly").lease_owner is None


def test_seen_files_are_identified_by_path_and_content(store: ScheduleStore, clock: Clock) -> None:
    lease, tick = opened(store, clock)
    files = [SeenFile(path="a", sha256="1"), SeenFile(path="a", sha256="2")]
    store.save(lease, tick, seen=files)
    store.save(lease, tick, seen=files[:1])
    assert store.seen_files("nightly") == set(files)


def test_active_schedule_cannot_be_removed_and_removal_deletes_everything(store: ScheduleStore, clock: Clock) -> None:
    lease, tick = opened(store, clock)
    store.save(lease, tick, seen=[SeenFile(path="a", sha256="1")])
    with pytest.raises(LeaseHeldError, match="a tick of nightly is active"):
        store.remove("nightly")
    store.release(lease)
    store.remove("nightly")
    assert (store.schedules(), store.history("nightly"), store.seen_files("nightly")) == ([], [], set())
    with pytest.raises(LeaseLostError):
        store.save(lease, tick)


RACER = """
import os, sys
from pathlib import Path
from pipelines.schedules.store import ScheduleStore
from rlad.errors import LeaseHeldError
url, witness, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, tokens = ScheduleStore(url), []
while len(tokens) < rounds:
    try:
        lease = store.acquire("nightly", f"process {os.getpid()}", 60)
    except LeaseHeldError:
        continue
    os.close(os.open(witness, os.O_CREAT | os.O_EXCL))  # fails if another process holds the lease
    tokens.append(lease.token)
    Path(witness).unlink()
    store.release(lease)
print(*tokens)
"""


def test_two_processes_never_hold_the_lease_at_once(store: ScheduleStore, url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, url, str(tmp_path / "witness"), str(ROUNDS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    tokens = [[int(token) for token in racer.communicate(timeout=90)[0].split()] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    all_tokens = sorted(tokens[0] + tokens[1])
    assert all_tokens == list(range(1, 2 * ROUNDS + 1))  # every token was issued exactly once
    assert all(own == sorted(own) for own in tokens)


def test_environment_variable_sets_the_store_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_SCHEDULES", "sqlite:////srv/schedules.sqlite")
    assert default_url() == "sqlite:////srv/schedules.sqlite"
    monkeypatch.delenv("RLAD_SCHEDULES")
    assert default_url().endswith("rlad/schedules.sqlite")


@pytest.mark.parametrize("url", ["nowhere", "oracle9://x", "sqlite:////proc/nowhere/schedules.sqlite"])
def test_unusable_store_url_is_refused(url: str) -> None:
    with pytest.raises(ScheduleError, match=r"RLAD_SCHEDULES|cannot open the schedule store"):
        ScheduleStore(url)


def test_errors_do_not_contain_the_password() -> None:
    with pytest.raises(ScheduleError) as raised:
        ScheduleStore("sqlite://user:hunter2@host/x")
    assert "hunter2" not in str(raised.value)
