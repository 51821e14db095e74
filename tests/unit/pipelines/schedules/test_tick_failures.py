"""Ticks with failures: retries, deadlines, interruptions, dead tickers and lost leases."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pipelines.run.directory import RunDirectory
from pipelines.run.status import STOPPED_EXIT_CODE
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import tick_run_id
from pipelines.schedules.tick import retry_wait_s, tick
from rlad.errors import LeaseLostError, ScheduleError, TickInterruptedError

from .conftest import DAY, NIGHT, Site, failed_exit


def test_failed_run_is_retried_within_its_budget_and_its_last_error_is_kept(site: Site) -> None:
    site.launcher.scripts = [lambda _: failed_exit("lost a node"), lambda _: failed_exit("lost another")]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts, ended.reason) == ("promoted", 3, None)
    assert len({request.arguments for request in site.launcher.requests}) == 1  # the same run, with --resume
    site.launcher.scripts = [lambda _: failed_exit("out of memory")] * 3
    ended = site.tick_at(NIGHT + DAY)
    assert (ended.event, ended.attempts) == ("failed", 3)
    assert ended.reason is not None
    assert "status 1: error: out of memory (log: " in ended.reason


def test_run_that_was_stopped_on_request_is_not_retried_and_not_failed(site: Site) -> None:
    site.launcher.scripts = [lambda _: RunExit(status=STOPPED_EXIT_CODE, reason="stopped: on request after 3 steps")]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts, ended.reason) == ("stopped", 1, "stopped: on request after 3 steps")
    assert site.store.unfinished("nightly") == []
    assert site.tick_at(NIGHT + DAY).event == "promoted"


def test_retry_waits_double_and_vary_at_random() -> None:
    for attempts, mean_s in ((1, 30.0), (2, 60.0), (3, 120.0)):
        waits = [retry_wait_s(30.0, attempts) for _ in range(200)]
        assert 0.75 * mean_s <= min(waits) < 0.9 * mean_s
        assert 1.1 * mean_s < max(waits) <= 1.25 * mean_s
    assert retry_wait_s(0.0, 1) == 0.0


def test_run_past_its_deadline_is_stopped_without_a_retry(site: Site) -> None:
    site.add(deadline_s=0.2)
    site.launcher.scripts = [lambda _: time.sleep(0.05)]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts, ended.reason) == ("failed", 1, "not finished within deadline_s 0.2")
    assert site.launcher.stopped == 1
    assert ended.spent_s > 0.2


def test_attempts_share_one_deadline(site: Site) -> None:
    site.add(deadline_s=0.5)

    def takes_a_while(_: RunRequest) -> RunExit:
        time.sleep(0.3)
        return failed_exit("lost a node")

    site.launcher.scripts = [takes_a_while, lambda _: time.sleep(0.05)]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts) == ("failed", 2)
    assert 0.5 < ended.spent_s < 0.8


def test_interrupted_tick_stops_its_run_and_the_next_tick_continues_it(site: Site) -> None:
    ticker = site.ticker

    def stopped_meanwhile(_: RunRequest) -> None:
        ticker.stop.set()

    site.launcher.scripts = [stopped_meanwhile]
    site.clock.now = NIGHT
    with pytest.raises(TickInterruptedError, match="continues it from its last checkpoint"):
        tick("nightly", ticker)
    assert site.launcher.stopped == 1
    (unfinished,) = site.store.unfinished("nightly")
    assert unfinished.attempts == 0  # a clean stop is not a failed attempt
    assert site.store.schedule("nightly").lease_owner is None
    (ended,) = site.tick()
    assert (ended.run_id, ended.event) == (unfinished.run_id, "promoted")
    assert site.launcher.requests[0] == site.launcher.requests[1]


def test_unfinished_run_is_continued_before_the_due_run_starts(site: Site) -> None:
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    site.store.open_tick(
        lease, kind="cron", scheduled_at=NIGHT, run_id=tick_run_id("nightly", NIGHT, kind="cron"), status="running"
    )
    site.clock.now = NIGHT + DAY
    ended = site.tick()
    assert [tick.run_id for tick in ended] == ["nightly-20260511T020000Z", "nightly-20260512T020000Z"]
    assert [tick.event for tick in ended] == ["promoted", "kept"]


def test_run_whose_tickers_all_died_failed_exit(site: Site) -> None:
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    opened = site.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    site.store.save(lease, replace(opened, attempts=3))
    site.clock.now = NIGHT + 60
    (ended,) = site.tick()
    assert (ended.event, ended.reason) == ("failed", "its ticker died in each of 3 attempts")
    assert site.launcher.requests == []


def test_decision_is_not_repeated_if_the_ticker_died_after_the_promotion(site: Site) -> None:
    ended = site.tick_at(NIGHT)
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    site.store.save(lease, replace(ended, status="running", ended_at=None))
    site.clock.now = NIGHT + 60
    (again,) = site.tick()
    assert again.outcome == ended.outcome
    assert [version.version for version in site.registry.versions("kk")] == [1]
    assert len(site.registry.history("kk")) == 2  # production and best, once each


def test_ticker_that_lost_its_lease_stops_its_run_and_writes_nothing(site: Site) -> None:
    site.add(lease_s=1)

    def taken_over(_: RunRequest) -> None:
        site.clock.now += 10
        time.sleep(0.1)
        if not site.launcher.stopped:
            site.clock.now += 10
            try:
                site.store.acquire("nightly", "another", 3600)
            except ScheduleError:
                return

    site.launcher.scripts = [taken_over]
    site.clock.now = NIGHT
    with pytest.raises(LeaseLostError):
        site.tick()
    assert site.launcher.stopped == 1
    (left,) = site.store.history("nightly")
    assert (left.status, left.spent_s) == ("running", 0.0)
    assert site.registry.names() == []


def test_run_that_succeeds_without_a_result_failed_exit(site: Site) -> None:
    site.add(retries=0)

    def writes_no_export(request: RunRequest) -> RunExit:
        site.launcher.write_run(request)
        run = RunDirectory(request.arguments[request.arguments.index("--run-dir") + 1])
        for file in run.export.iterdir():
            file.unlink()
        run.export.rmdir()
        return RunExit(status=0, reason=None)

    site.launcher.scripts = [writes_no_export]
    ended = site.tick_at(NIGHT)
    assert ended.event == "failed"
    assert ended.reason is not None
    assert "does not hold a finished run" in ended.reason
