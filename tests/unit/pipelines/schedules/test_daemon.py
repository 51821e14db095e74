"""The daemon finds what waits for somebody, and ends in order. That it ticks at the minute is seen in tests/end_to_end, which wait for one."""

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
from pipelines.schedules.launcher import RunRequest
from pipelines.schedules.records import run_id_of
from pipelines.schedules.signals import run_until_signalled
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import Ticker

from .conftest import Site


@pytest.fixture
def live(site: Site) -> Site:
    """The site by the real clock."""
    site.clock.now = time.time()
    site.store.close()
    site.store = ScheduleStore(f"sqlite:///{site.folder / 'schedules.sqlite'}")
    site.store.resume("nightly")
    return site


@contextmanager
def serving(site: Site) -> Iterator[threading.Thread]:
    ticker = Ticker(store=site.store, launcher=site.launcher)
    thread = threading.Thread(target=ScheduleDaemon(ticker, look_s=0.1).serve)
    thread.start()
    try:
        yield thread
    finally:
        ticker.stop.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(done: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events(site: Site, name: str = "nightly") -> list[str | None]:
    return [tick.event for tick in site.store.history(name)]


def every_minute_due_since_a_minute(site: Site) -> None:
    """A schedule whose last tick is just over, without waiting for the minute."""
    site.clock.now = time.time() - 90
    ScheduleStore(f"sqlite:///{site.folder / 'schedules.sqlite'}", clock=site.clock).add(
        site.settings(name="minutely", cron="* * * * *", directory=str(site.folder / "minutely"), model="other"),
        evaluation_fingerprint=site.store.schedule("nightly").evaluation_fingerprint,
    )


def test_a_schedule_that_is_added_while_it_serves_is_ticked(live: Site) -> None:
    with serving(live):
        every_minute_due_since_a_minute(live)
        wait_for(lambda: "promoted" in events(live, "minutely"))
    assert events(live) == []


def test_a_run_whose_ticker_died_is_resumed_without_waiting_for_the_clock(live: Site) -> None:
    lease = live.store.acquire("nightly", "a ticker that died", 0.5)
    opened = live.store.open_tick(
        lease, kind="cron", scheduled_at=time.time(), run_id=run_id_of("nightly", 0, kind="cron"), status="running"
    )
    live.store.save(lease, replace(opened, attempts=1))
    with serving(live):
        wait_for(lambda: events(live) == ["promoted"])
    assert live.store.history("nightly")[0].attempts == 2


def test_a_paused_schedule_is_left_alone_but_its_unfinished_run_is_not(live: Site) -> None:
    every_minute_due_since_a_minute(live)
    live.store.pause("minutely")
    lease = live.store.acquire("nightly", "a ticker that died", 0.5)
    live.store.open_tick(lease, kind="cron", scheduled_at=time.time(), run_id="r", status="running")
    live.store.pause("nightly")
    with serving(live):
        wait_for(lambda: events(live) == ["promoted"])
    assert events(live, "minutely") == []


def test_told_to_end_it_stops_its_run_in_order(live: Site) -> None:
    every_minute_due_since_a_minute(live)
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


def test_a_signal_sets_the_event_and_the_work_is_waited_for() -> None:
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


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_until_signalled(work, threading.Event())
