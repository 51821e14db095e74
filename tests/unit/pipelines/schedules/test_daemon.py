"""The schedule daemon: ticks at their times, ticks found in the store, and clean shutdown on a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipelines.schedules.daemon import ScheduleDaemon
from pipelines.schedules.execution import Ticker
from pipelines.schedules.launcher import RunRequest
from pipelines.schedules.lease import hold_lease
from pipelines.schedules.records import tick_run_id
from pipelines.schedules.signals import run_until_signalled
from pipelines.schedules.store import ScheduleStore

from .conftest import Site


@pytest.fixture
def live(site: Site) -> Site:
    """The site with the real clock."""
    site.clock.now = time.time()
    site.store.close()
    site.store = ScheduleStore(f"sqlite:///{site.folder / 'schedules.sqlite'}")
    site.store.resume("nightly")
    return site


@contextmanager
def serving(site: Site, *, clock: Callable[[], float] = time.time, look_s: float = 0.1) -> Iterator[threading.Thread]:
    ticker = Ticker(store=site.store, launcher=site.launcher, clock=clock)
    thread = threading.Thread(target=ScheduleDaemon(ticker, look_s=look_s).serve)
    thread.start()
    try:
        yield thread
    finally:
        ticker.stop.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(done: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events(site: Site, name: str = "nightly") -> list[str | None]:
    return [tick.event for tick in site.store.history(name)]


def add_overdue_schedule(site: Site) -> None:
    """Add a schedule `minutely` that has been due for a minute, so that tests need not wait for one."""
    site.clock.now = time.time() - 90
    ScheduleStore(f"sqlite:///{site.folder / 'schedules.sqlite'}", clock=site.clock).add(
        site.settings(name="minutely", cron="* * * * *", directory=str(site.folder / "minutely"), model="other"),
        evaluation_fingerprint=site.store.schedule("nightly").evaluation_fingerprint,
    )


@pytest.fixture
def before_the_minute(site: Site) -> tuple[Site, Callable[[], float]]:
    """A schedule `minutely`, on a real-time clock that is shifted to one second before a full minute."""
    shift = 59.0 - time.time() % 60

    def clock() -> float:
        return time.time() + shift

    site.clock.now = clock()
    site.add(name="minutely", cron="* * * * *", directory=str(site.folder / "minutely"), model="other", lease_s=1)
    site.store.close()
    site.store = ScheduleStore(f"sqlite:///{site.folder / 'schedules.sqlite'}", clock=clock)
    return site, clock


def test_schedule_is_ticked_at_its_time_between_two_looks(
    before_the_minute: tuple[Site, Callable[[], float]],
) -> None:
    site, clock = before_the_minute
    with serving(site, clock=clock, look_s=3600):
        wait_for(lambda: events(site, "minutely") == ["promoted"])
    assert site.store.history("minutely")[0].scheduled_at % 60 == 0


def test_time_that_comes_while_another_ticker_works_is_recorded_as_refused(
    before_the_minute: tuple[Site, Callable[[], float]],
) -> None:
    site, clock = before_the_minute
    with (
        hold_lease(site.store, "minutely", 1, stop=threading.Event()),
        serving(site, clock=clock, look_s=3600),
    ):
        wait_for(lambda: events(site, "minutely") == ["refused"])


def test_schedule_added_while_the_daemon_serves_is_ticked(live: Site) -> None:
    with serving(live):
        add_overdue_schedule(live)
        wait_for(lambda: "promoted" in events(live, "minutely"))
    assert events(live) == []


def test_run_of_a_dead_ticker_is_resumed_at_the_next_look(live: Site) -> None:
    lease = live.store.acquire("nightly", "a ticker that died", 0.5)
    opened = live.store.open_tick(
        lease, kind="cron", scheduled_at=time.time(), run_id=tick_run_id("nightly", 0, kind="cron"), status="running"
    )
    live.store.save(lease, replace(opened, attempts=1))
    with serving(live):
        wait_for(lambda: events(live) == ["promoted"])
    assert live.store.history("nightly")[0].attempts == 2


def test_paused_schedule_starts_no_run_but_finishes_an_unfinished_one(live: Site) -> None:
    add_overdue_schedule(live)
    live.store.pause("minutely")
    lease = live.store.acquire("nightly", "a ticker that died", 0.5)
    live.store.open_tick(lease, kind="cron", scheduled_at=time.time(), run_id="r", status="running")
    live.store.pause("nightly")
    with serving(live):
        wait_for(lambda: events(live) == ["promoted"])
    assert events(live, "minutely") == []


def test_stopping_the_daemon_stops_its_run_and_releases_the_lease(live: Site) -> None:
    add_overdue_schedule(live)
    started = threading.Event()

    def long_run(_: RunRequest) -> None:
        started.set()
        time.sleep(0.05)

    live.launcher.scripts = [long_run]
    with serving(live):
        assert started.wait(30)
    assert live.launcher.stopped == 1
    (unfinished,) = live.store.unfinished("minutely")
    assert (unfinished.status, unfinished.attempts) == ("running", 0)
    assert live.store.schedule("minutely").lease_owner is None


def test_signal_sets_the_event_and_waits_for_the_work() -> None:
    stop, order = threading.Event(), list[str]()

    def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(30)
        order.append("cleaned up")
        return "done"

    before = signal.getsignal(signal.SIGTERM)
    assert run_until_signalled(work, stop) == "done"
    assert order == ["cleaned up"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_error_of_the_work_is_raised() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_until_signalled(work, threading.Event())
