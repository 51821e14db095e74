"""Runs that are jobs: adoption by another ticker, a lost job, a stopped one, and the deadline."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pipelines.schedules.execution import Ticker
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import Tick, TickJob
from pipelines.schedules.tick import tick
from rlad.errors import TickInterruptedError

from ..conftest import NIGHT, FakeRun, Script, Site

LAUNCHER = {"kind": "ray_job", "address": "http://ray:8265"}


@dataclass(slots=True)
class FakeJobs:
    """Cluster whose jobs follow scripts, one for each ticker that starts or adopts a job."""

    site: Site
    scripts: list[Script] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)

    def start(self, request: RunRequest) -> FakeRun:
        run = self.site.launcher.start(request)
        run.job = f"{request.name}-{len(self.site.launcher.requests)}"
        return self._follow(run)

    def adopt(self, request: RunRequest, job: str) -> FakeRun:
        self.adopted.append(job)
        return self._follow(FakeRun(self.site.launcher, request, self.site.launcher.finish, job))

    def _follow(self, run: FakeRun) -> FakeRun:
        if self.scripts:
            run.script = self.scripts.pop(0)
        return run


@pytest.fixture
def jobs(site: Site) -> FakeJobs:
    site.add(launcher=LAUNCHER)
    site.clock.now = NIGHT
    return FakeJobs(site)


def ticked(jobs: FakeJobs) -> list[Tick]:
    return tick("nightly", Ticker(store=jobs.site.store, job_launcher=lambda _: jobs, clock=jobs.site.clock))


def interrupted(jobs: FakeJobs) -> None:
    """Tick until the job runs, and then stop the ticker."""
    ticker = Ticker(store=jobs.site.store, job_launcher=lambda _: jobs, clock=jobs.site.clock)

    def run(_: RunRequest) -> None:
        ticker.stop.set()

    jobs.scripts.append(run)
    with pytest.raises(TickInterruptedError, match="adopts its job"):
        tick("nightly", ticker)


def test_job_of_a_stopped_ticker_is_adopted_as_the_same_attempt(jobs: FakeJobs) -> None:
    interrupted(jobs)
    assert jobs.site.launcher.stopped == 0
    jobs.site.clock.now += 50
    (ended,) = ticked(jobs)
    job = TickJob(id="nightly-20260511T020000Z-1", command="nightly-20260511T020000Z", submitted_at=NIGHT)
    assert jobs.adopted == [job.id]
    assert (ended.event, ended.attempts, ended.spent_s, ended.job) == ("promoted", 1, 50, job)
    assert len(jobs.site.launcher.requests) == 1


def test_lost_job_is_submitted_again_as_the_next_attempt(jobs: FakeJobs) -> None:
    interrupted(jobs)
    jobs.scripts = [lambda _: RunExit(status=1, reason="job is lost")]
    (ended,) = ticked(jobs)
    assert (ended.event, ended.attempts) == ("promoted", 2)
    assert ended.job is not None
    assert ended.job.id == "nightly-20260511T020000Z-2"
    assert "--resume" in jobs.site.launcher.requests[1].arguments


def test_lost_job_without_a_further_attempt_fails_the_tick(jobs: FakeJobs) -> None:
    jobs.site.add(launcher=LAUNCHER, retries=0)
    interrupted(jobs)
    jobs.scripts = [lambda _: RunExit(status=1, reason="job is lost")]
    (ended,) = ticked(jobs)
    assert (ended.event, ended.attempts, ended.job) == ("failed", 1, None)
    assert len(jobs.site.launcher.requests) == 1


def test_job_that_was_stopped_is_not_submitted_again(jobs: FakeJobs) -> None:
    jobs.scripts = [lambda _: RunExit(status=90, reason="stopped at the cluster")]
    (ended,) = ticked(jobs)
    assert (ended.event, ended.reason) == ("stopped", "stopped at the cluster")


def test_time_under_an_earlier_ticker_counts_towards_the_deadline(jobs: FakeJobs) -> None:
    jobs.site.add(launcher=LAUNCHER, deadline_s=100)
    interrupted(jobs)
    jobs.site.clock.now += 101
    jobs.scripts = [lambda _: None]
    (ended,) = ticked(jobs)
    assert ended.event == "failed"
    assert ended.reason == "not finished within deadline_s 100"
    assert jobs.site.launcher.stopped == 1


def test_ticker_without_a_job_launcher_does_not_run_the_schedule_as_a_process(jobs: FakeJobs) -> None:
    (ended,) = jobs.site.tick()
    assert ended.event == "failed"
    assert "launcher.kind ray_job" in str(ended.reason)
    assert jobs.site.launcher.requests == []
