"""Processes of scheduled runs: exit status, error line, stopping, and death with the ticker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipelines.schedules.launcher import ChildProcess, RunRequest, last_line_with
from tests.processes import still_alive

ROOT = Path(__file__).parents[5]


def request(folder: Path, *arguments: str) -> RunRequest:
    log = folder / "logs" / "run.log"
    return RunRequest(name="run", output=folder, arguments=arguments, working_dir=folder, log=log)


def test_failed_run_reports_its_status_and_error_line(tmp_path: Path) -> None:
    running = ChildProcess().start(request(tmp_path, "run", "nowhere.yaml", "--run-dir", "run"))
    ended = running.wait(60)
    assert ended is not None
    assert (ended.status, ended.reason) == (1, "status 1: error: no configuration file at nowhere.yaml")


def test_successful_run_has_no_reason_and_its_output_is_logged(tmp_path: Path) -> None:
    running = ChildProcess().start(request(tmp_path, "--help"))
    ended = running.wait(60)
    assert ended is not None
    assert (ended.status, ended.reason) == (0, None)
    assert "RL-aware distillation" in (tmp_path / "logs" / "run.log").read_text()


def test_error_line_is_searched_in_the_present_attempt_only(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("step 1\nerror: the first attempt\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("step 2\nkilled\n\n")
    assert last_line_with("error:", log) == "error: the first attempt"
    assert last_line_with("error:", log, start) == "killed"


STUBBORN = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
own = subprocess.Popen(["sleep", "600"])
open("pids.new", "w").write(f"{os.getpid()} {own.pid}")
os.rename("pids.new", "pids")
time.sleep(600)
"""
TICKER = """
import sys
from pathlib import Path
from pipelines.schedules.launcher import ChildProcess, RunRequest
request = RunRequest(name="run", output=Path(), arguments=(), working_dir=Path.cwd(), log=Path("run.log"))
ChildProcess(command=(sys.executable, "stubborn.py")).start(request).wait(600)
"""


def started_pids(folder: Path, timeout_s: float = 60) -> list[int]:
    """Wait for the stubborn program and its child, and return their process ids."""
    deadline = time.monotonic() + timeout_s
    while not (folder / "pids").exists():
        assert time.monotonic() < deadline, (folder / "run.log").read_text()
        time.sleep(0.02)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def are_gone(pids: Sequence[int]) -> bool:
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not still_alive(alive, 10)


def test_run_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    running = ChildProcess(command=(sys.executable, "stubborn.py")).start(request(tmp_path))
    pids = started_pids(tmp_path)
    assert running.wait(0.01) is None
    began = time.monotonic()
    running.stop(0.5)
    assert time.monotonic() - began >= 0.5
    assert are_gone(pids)
    ended = running.wait(1)
    assert ended is not None
    assert ended.reason is not None
    assert ended.reason.startswith("killed by SIGKILL")


def test_run_is_killed_when_its_ticker_dies(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", TICKER], cwd=tmp_path, env=environment) as ticker:
        run, child = started_pids(tmp_path)
        ticker.send_signal(signal.SIGKILL)
    assert are_gone([run])
    os.kill(child, signal.SIGKILL)  # grandchildren are not covered; Ray's processes watch their driver
