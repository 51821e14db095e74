"""Ticks whose run directory is in use by another process, such as the run of a frozen ticker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from actors.health.node_watch import ProcessId
from pipelines.run.directory import RunDirectory
from pipelines.schedules.execution import Ticker, TickExecution
from pipelines.schedules.launcher import ChildProcess, RunExit, RunRequest
from pipelines.schedules.records import Tick
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
from rlad.errors import TickInterruptedError

from .conftest import NIGHT, Site, failed_exit

RUN_ID = "nightly-20260511T020000Z"


def leave_unfinished(site: Site, *, attempts: int) -> RunDirectory:
    """Leave an unfinished tick with a run directory and this number of attempts."""
    ticker = site.ticker

    def interrupted(request: RunRequest) -> None:
        site.launcher.write_run(request)
        ticker.stop.set()

    site.launcher.scripts = [interrupted]
    site.clock.now = NIGHT
    with pytest.raises(TickInterruptedError):
        tick("nightly", ticker)
    (left,) = site.store.unfinished("nightly")
    lease = site.store.acquire("nightly", "a ticker", 1)
    site.store.save(lease, replace(left, attempts=attempts))
    site.store.release(lease)
    site.launcher.requests.clear()
    return RunDirectory(site.folder / "nightly" / "runs" / RUN_ID)


@contextmanager
def ticking(ticker: Ticker) -> Iterator[list[Tick]]:
    """Tick in a thread, and wait for its end after the block."""
    ended: list[Tick] = []
    thread = threading.Thread(target=lambda: ended.extend(tick("nightly", ticker)))
    thread.start()
    yield ended
    thread.join(120)
    assert not thread.is_alive()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("attempts", [1, 3])  # 3: all attempts are used up
def test_waiting_for_the_run_lock_costs_no_attempt(site: Site, attempts: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pipelines.schedules")
    run = leave_unfinished(site, attempts=attempts)
    with ticking(site.ticker) as ended, run.hold(run.read_config(), resume=True):
        wait_for(lambda: "waiting_for_run schedule=nightly" in caplog.text)
        time.sleep(1.5)  # several looks at the lock
        (waiting,) = site.store.unfinished("nightly")
        assert waiting.attempts == attempts
        assert site.launcher.requests == []
    assert [(found.event, found.attempts) for found in ended] == [("promoted", attempts)]
    assert ended[0].spent_s > 1.0


def test_waiting_for_the_run_lock_ends_at_the_deadline(site: Site) -> None:
    site.add(deadline_s=0.5)
    run = leave_unfinished(site, attempts=1)
    with run.hold(run.read_config(), resume=True):
        (ended,) = site.tick()
    assert (ended.event, ended.attempts) == ("failed", 1)
    assert ended.reason == "not finished within deadline_s 0.5, because another process still works in its directory"
    assert site.launcher.requests == []


def test_waiting_for_the_run_lock_can_be_interrupted(site: Site) -> None:
    run = leave_unfinished(site, attempts=2)
    ticker = site.ticker
    ticker.stop.set()
    with run.hold(run.read_config(), resume=True), pytest.raises(TickInterruptedError):
        tick("nightly", ticker)
    (left,) = site.store.unfinished("nightly")
    assert left.attempts == 2


def test_run_that_starts_after_another_process_took_the_directory_is_continued(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(retries=0)
    run = leave_unfinished(site, attempts=0)
    took, ended = threading.Event(), threading.Event()
    look = TickExecution.is_run_active

    def look_and_end_the_other(self: TickExecution) -> bool:
        is_active = look(self)
        if is_active:
            ended.set()
        return is_active

    def other_process() -> None:
        with run.hold(run.read_config(), resume=True):
            took.set()
            assert ended.wait(60)

    other = threading.Thread(target=other_process)

    def refused(_: RunRequest) -> RunExit:
        other.start()
        assert took.wait(60)
        monkeypatch.setattr(TickExecution, "is_run_active", look_and_end_the_other)
        return failed_exit(f"another process is running in {run.path}")

    site.launcher.scripts = [refused]
    (found,) = site.tick()
    other.join(60)
    assert (found.event, found.attempts) == ("promoted", 1)


FROZEN = """
import sys
from pipelines.schedules.execution import TickExecution, Ticker
from pipelines.schedules.launcher import ChildProcess
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
url, now, *command = sys.argv[1:]
clock = lambda: float(now)
tick("nightly", Ticker(store=ScheduleStore(url), launcher=ChildProcess(command=tuple(command)), clock=clock))
"""

# A run that holds its directory until a file appears. Only the first run waits for the file.
RUN = """
import sys, time
from pathlib import Path
from pipelines.run.directory import RunDirectory
from pipelines.schedules.launcher import RunRequest
from rlad.config import load_run_config
from tests.unit.pipelines.schedules.conftest import FakeLauncher
folder, *arguments = sys.argv[1:]
run = RunDirectory(arguments[arguments.index("--run-dir") + 1])
request = RunRequest(name="run", output=Path(), arguments=tuple(arguments), working_dir=Path(), log=Path())
if not run.config.exists():
    with run.hold(load_run_config(arguments[1]), resume=True):
        Path(folder, "started").touch()
        while not Path(folder, "may-end").exists():
            time.sleep(0.05)
FakeLauncher().write_run(request)
"""


@pytest.mark.parametrize("first", ["the run ends", "the ticker wakes"])
def test_run_of_a_frozen_ticker_is_taken_over_without_a_further_attempt(
    site: Site, first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipelines.schedules")
    site.add(lease_s=4, retries=0, stop_grace_s=1)
    url = f"sqlite:///{tmp_path / 'schedules.sqlite'}"
    command = (sys.executable, "-c", RUN, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    frozen = subprocess.Popen(
        [sys.executable, "-c", FROZEN, url, str(NIGHT), *command], env=environment, stderr=subprocess.DEVNULL
    )
    store = ScheduleStore(url)
    ticker = Ticker(store=store, launcher=ChildProcess(command=command), clock=lambda: NIGHT)
    try:
        wait_for((tmp_path / "started").exists)
        # Just after a renewal: a process that is stopped within a transaction would keep SQLite's lock.
        expires_at = store.schedule("nightly").lease_expires_at
        wait_for(lambda: store.schedule("nightly").lease_expires_at != expires_at)
        time.sleep(0.1)
        frozen.send_signal(signal.SIGSTOP)
        with ticking(ticker) as ended:
            wait_for(lambda: "waiting_for_run schedule=nightly" in caplog.text)
            if first == "the run ends":
                (tmp_path / "may-end").touch()
            else:
                frozen.send_signal(signal.SIGCONT)
                assert frozen.wait(120) == 1  # it lost its lease
        assert [(found.run_id, found.event, found.attempts) for found in ended] == [(RUN_ID, "promoted", 1)]
    finally:
        frozen.send_signal(signal.SIGCONT)
        frozen.kill()
        frozen.wait()
        store.close()


# A run that stops when it is started the first time, and then never ends by itself.
STOPPING = """
import os, signal, sys
from pathlib import Path
mark, *arguments = sys.argv[1:]
if not Path(mark).exists():
    Path(mark).touch()
    os.kill(os.getpid(), signal.SIGSTOP)
from pipelines.schedules.launcher import RunRequest
from tests.unit.pipelines.schedules.conftest import FakeLauncher
here = Path()
FakeLauncher().write_run(
    RunRequest(name="run", output=here, arguments=tuple(arguments), working_dir=here, log=here)
)
"""
# A process that holds the directory of a run.
HOLDER = """
import sys, time
from pipelines.run.directory import RunDirectory
run = RunDirectory(sys.argv[1])
with run.hold(run.read_config(), resume=True):
    print("holds", flush=True)
    time.sleep(600)
"""
HEARTBEAT_S = 0.5


def with_short_heartbeats(site: Site) -> Site:
    site.add(run={**site.settings().run, "failures": {"heartbeat_s": HEARTBEAT_S, "missed_heartbeats": 3}})
    return site


def test_stopped_run_is_killed_and_continued_by_the_next_attempt(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with_short_heartbeats(site)
    site.clock.now = NIGHT
    launcher = ChildProcess(command=(sys.executable, "-c", STOPPING, str(tmp_path / "started")))
    (ended,) = tick("nightly", Ticker(store=site.store, launcher=launcher, clock=site.clock))
    assert (ended.event, ended.attempts) == ("promoted", 2)


def test_stopped_run_of_another_ticker_is_killed_and_continued(site: Site) -> None:
    run = leave_unfinished(with_short_heartbeats(site), attempts=1)
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"holds\n"
        process = ProcessId.of(driver.pid, node=os.uname().nodename)
        run.heartbeat.write_text(json.dumps({**asdict(process), "late_after_s": 3 * HEARTBEAT_S}))
        driver.send_signal(signal.SIGSTOP)
        (ended,) = site.tick()
        assert driver.wait(10) == -signal.SIGKILL
    assert (ended.event, ended.attempts) == ("promoted", 1)
