"""A supervised driver is started again when it dies or hangs, not when it was stopped, refused or has finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.jobs import supervisor
from pipelines.run.directory import RunDirectory
from rlad.config import FailureConfig

ROOT = Path(__file__).parents[4]

# The driver records its attempts in a file, and does in each what the test asks for.
DRIVER = """
import os, signal, sys, time
from pathlib import Path

folder, actions = Path(sys.argv[1]), sys.argv[2].split(",")
attempts = folder / "attempts"
with attempts.open("a") as file:
    file.write(f"{os.getpid()} {'--resume' in sys.argv}\\n")
action = actions[len(attempts.read_text().splitlines()) - 1]
if action == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif action == "fail":
    from pipelines.run.directory import RunDirectory
    from pipelines.run.status import RunStatus, _record

    _record(RunDirectory(folder), RunStatus.FAILED, "the teacher is gone")
    sys.exit(1)
elif action == "sleep":
    time.sleep(600)
elif action == "hang":
    os.kill(os.getpid(), signal.SIGSTOP)
elif action == "terminated":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    (folder / "ready").touch()
    time.sleep(600)
sys.exit(int(action) if action.isdecimal() else 0)
"""
SUPERVISOR = """
import sys
from pathlib import Path
from pipelines.jobs import supervisor
from pipelines.run.directory import RunDirectory
from rlad.config import FailureConfig

folder, *command = sys.argv[1:]
failures = FailureConfig(heartbeat_s=60)
sys.exit(supervisor.supervise(command, RunDirectory(folder), max_restarts=2, failures=failures))
"""


FAILURES = FailureConfig(heartbeat_s=0.05, missed_heartbeats=3)


def driver(folder: Path, actions: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(folder), actions]


def start(folder: Path, actions: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), *driver(folder, actions)], cwd=ROOT)


def attempts(folder: Path) -> list[tuple[int, bool]]:
    """Return process id of each attempt, and whether it continued the run."""
    path = folder / "attempts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), line.split()[1] == "True") for line in lines]


@pytest.mark.parametrize(
    ("actions", "status", "resumed"),
    [
        ("die,fail,0", 0, [False, True, True]),
        ("die,die,die,0", 128 + signal.SIGKILL, [False, True, True]),  # two restarts are allowed
        ("hang,0", 0, [False, True]),
        ("hang,hang,hang,0", 128 + signal.SIGKILL, [False, True, True]),
        ("1,0", 1, [False]),  # refused before the run began
        ("90,0", 90, [False]),  # `rlad stop`
    ],
)
def test_driver_is_started_again_only_if_another_attempt_may_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actions: str, status: int, resumed: list[bool]
) -> None:
    monkeypatch.setattr(supervisor, "_MAX_PAUSE_S", 0.0)
    monkeypatch.chdir(ROOT)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    command, run = driver(tmp_path, actions), RunDirectory(tmp_path)
    assert supervisor.supervise(command, run, max_restarts=2, failures=FAILURES) == status
    assert {number: signal.getsignal(number) for number in before} == before
    assert [is_resumed for _, is_resumed in attempts(tmp_path)] == resumed


def test_driver_is_killed_when_it_is_stopped_at_three_looks_in_a_row(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        watch = supervisor.DriverWatch(process.pid, FAILURES)
        for looks in (1, 2):  # a stop that ends before the third look has no effect
            process.send_signal(signal.SIGSTOP)
            wait_for_state(process, psutil.STATUS_STOPPED)
            for _ in range(looks):
                watch.look()
            process.send_signal(signal.SIGCONT)
            wait_for_state(process, psutil.STATUS_SLEEPING)
            watch.look()
        process.send_signal(signal.SIGSTOP)
        wait_for_state(process, psutil.STATUS_STOPPED)
        watch.look()
        watch.look()
        assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
        watch.look()
        assert process.wait(30) == -signal.SIGKILL


def test_sigterm_reaches_the_driver_and_ends_the_run(tmp_path: Path) -> None:
    with start(tmp_path, "terminated,0") as process:
        wait_for(tmp_path / "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert len(attempts(tmp_path)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's signal for the death of a parent process")
def test_driver_ends_with_its_supervisor(tmp_path: Path) -> None:
    with start(tmp_path, "sleep") as process:
        wait_for(tmp_path / "attempts")
        [(pid, _)] = attempts(tmp_path)
        driver = psutil.Process(pid)
        os.kill(process.pid, signal.SIGKILL)
        driver.wait(30)
    assert not driver.is_running()


def wait_for_state(process: subprocess.Popen[bytes], state: str) -> None:
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).status() != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or (path.name == "attempts" and not path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
