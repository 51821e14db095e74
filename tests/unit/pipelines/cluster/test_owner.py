"""A killed driver leaves its record, and the next driver kills the processes that it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from pipelines.cluster.job_environment import DRIVER, DRIVER_VARIABLE
from pipelines.cluster.owner import kill_processes, owned, read_owner
from pipelines.run.directory import RunDirectory

# A child with a child of its own, as an engine's worker has.
CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print('up', flush=True); input()"


def start(driver: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, DRIVER_VARIABLE: driver},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_processes_of_a_dead_driver_are_killed_with_their_children_and_no_others() -> None:
    with start("dead") as dead, start("alive") as alive:
        processes = [psutil.Process(dead.pid), *psutil.Process(dead.pid).children()]
        assert kill_processes("dead") == len(processes) == 2
        assert not any(process.is_running() for process in processes)
        assert alive.poll() is None
        assert kill_processes("alive") == 2


def test_record_of_the_driver_lasts_as_long_as_its_work(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_owner(run) is None
    with owned(run, "kk-1", applications=["kk-1-teacher"]):
        owner = read_owner(run)
        assert owner is not None
        assert (owner.driver, owner.run_id, owner.pid) == (DRIVER, "kk-1", os.getpid())
    assert not run.owner.exists()


def test_damaged_record_is_ignored(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for content in ("", "[]", json.dumps({"driver": "x"})):
        run.owner.write_text(content)
        assert read_owner(run) is None
