"""A tracker's process that hangs or dies is replaced, and given up when that does not help."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipelines.monitoring.trackers.child_process import ChildTracker
from pipelines.monitoring.trackers.tracker import TrackedRun
from rlad.config.monitoring.trackers import WandbTracker
from rlad.errors import DeadlineError, EngineError

# Writes its input to a file. Step 2 hangs, step 3 ends the process, step 4 is refused.
CHILD = """
import json, os, sys, time
settings = json.loads(sys.stdin.readline())
if settings["run_id"] == "refused":
    print("UsageError: no API key", flush=True)
    sys.exit(1)
print(flush=True)
for line in sys.stdin:
    figures = json.loads(line)
    if figures["step"] == 2:
        time.sleep(3600)
    if figures["step"] == 3:
        os._exit(1)
    if figures["step"] == 4:
        print("ValueError: no step 4", flush=True)
        continue
    with open(os.path.join(settings["folder"], "taken"), "a") as file:
        file.write(line)
    print(flush=True)
with open(os.path.join(settings["folder"], "closed"), "w"):
    pass
"""


def tracker_at(folder: Path, *, run_id: str = "run", log_timeout_s: float = 60.0) -> ChildTracker:
    run = TrackedRun(run_id=run_id, config={}, folder=folder, tensorboard=folder, start_step=0)
    command = (sys.executable, "-c", CHILD)
    return ChildTracker(WandbTracker(name="wandb"), run, command=command, log_timeout_s=log_timeout_s)


def taken(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "taken").read_text().splitlines()]


def test_child_gets_the_figures_and_the_end_of_the_run(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    tracker.log(0, {"evaluation/accuracy": 0.25})
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert [json.loads(line) for line in (tmp_path / "taken").read_text().splitlines()] == [
        {"step": 0, "values": {"evaluation/accuracy": 0.25}},
        {"step": 1, "values": {"reward/mean": 0.5}},
    ]
    assert (tmp_path / "closed").exists()


def test_hanging_child_is_killed_and_the_next_figures_get_a_new_one(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path, log_timeout_s=2.0)
    tracker.log(1, {})
    with pytest.raises(DeadlineError, match="wandb did not answer within 2 s"):
        tracker.log(2, {})
    tracker.log(5, {})
    tracker.close()
    assert taken(tmp_path) == [1, 5]


def test_child_that_ended_is_replaced(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    with pytest.raises(EngineError, match="the process of wandb ended"):
        tracker.log(3, {})
    tracker.log(5, {})
    tracker.close()
    assert taken(tmp_path) == [5]


def test_refused_figures_leave_the_child_at_work(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path)
    tracker.log(1, {})
    for _ in range(5):
        with pytest.raises(EngineError, match=r"no step 4 .*wandb\.log"):
            tracker.log(4, {})
    tracker.log(5, {})
    tracker.close()
    assert taken(tmp_path) == [1, 5]


def test_tracker_that_never_starts_is_given_up(tmp_path: Path) -> None:
    tracker = tracker_at(tmp_path, run_id="refused")
    for _ in range(3):
        with pytest.raises(EngineError, match="no API key"):
            tracker.log(1, {})
    with pytest.raises(EngineError, match="given up after 3 failures in a row"):
        tracker.log(1, {})
    tracker.close()
