"""Heartbeat of a driver in its run directory."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.controller import RunState
from actors.health.monitor import ActorHealth
from pipelines.cluster.live_run import print_status
from pipelines.run.directory import RunDirectory
from pipelines.run.heartbeat import beating, read_heartbeat
from rlad.config import FailureConfig

FAILURES = FailureConfig(heartbeat_s=0.05, missed_heartbeats=4)
NOW = RunState(phase="running", step=3, total_steps=9, pools={}, metrics={}, updated_at=1.0)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def status_of(run: RunDirectory, state: RunState, *, width: int) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        print_status(run, state, console)
    return captured.get()


def test_driver_beats_until_its_end(run: RunDirectory) -> None:
    assert read_heartbeat(run) is None
    with beating(run, FAILURES):
        os.utime(run.heartbeat, (1.0, 1.0))
        deadline = time.monotonic() + 60
        while run.heartbeat.stat().st_mtime == 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = read_heartbeat(run)
        assert found is not None
        assert (found.process.pid, found.is_here, found.is_late) == (os.getpid(), True, False)
        assert found.late_after_s == pytest.approx(0.2)
    assert read_heartbeat(run) is None


def test_driver_without_heartbeats_is_late_and_status_says_so(run: RunDirectory) -> None:
    with beating(run, FailureConfig(heartbeat_s=60, missed_heartbeats=3)):
        for age_s, is_late in ((170.0, False), (185.0, True)):
            beaten_at = time.time() - age_s
            os.utime(run.heartbeat, (beaten_at, beaten_at))
            found = read_heartbeat(run)
            assert found is not None
            assert found.is_late is is_late
            assert ("no heartbeat of the driver for 185 s" in status_of(run, NOW, width=200)) is is_late


def test_file_that_is_no_heartbeat_is_none(run: RunDirectory) -> None:
    for text in ("", "[]", "{}", '{"pid": 3}'):
        run.heartbeat.write_text(text)
        assert read_heartbeat(run) is None


def test_status_lists_the_health_of_every_process_in_80_columns(run: RunDirectory) -> None:
    actors = (
        ActorHealth(name="broker", role="broker", state="alive", seen_s=0.4, restarts=0),
        ActorHealth(name="rollout-17", role="rollout", state="stopped", seen_s=19.6, restarts=2),
        ActorHealth(
            name="teacher-of-mathematics-abcdefgh-" + "i" * 20,
            role="teacher-of-mathematics",
            state="unknown",
            seen_s=3.0,
            restarts=1,
        ),
    )
    lines = status_of(run, replace(NOW, actors=actors), width=80).splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "s ago" in line]
    assert rows[:2] == [["broker", "alive", "0 s ago", "0"], ["rollout-17", "stopped", "20 s ago", "2"]]
    assert rows[2][0].startswith("teacher-of-mathematics")
    assert rows[2][1:] == ["unknown", "3 s ago", "1"]
