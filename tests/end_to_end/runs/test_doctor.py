"""`rlad doctor` with every engine: a healthy machine has no error, and every measurement is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines", "doctor", "--json", "--work-dir", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert finished.stdout, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    assert finished.returncode == (1 if found["status"] == "error" else 0)
    return found


def test_engines_agree_before_and_after_two_weight_updates(report: dict[str, Any]) -> None:
    checks = {check["name"]: check for check in report["checks"]}
    for name in ("engines", "logits", "teacher", "rollout", "weight updates", "object store", "NCCL"):
        assert checks[name]["status"] == "ok" or name == "object store", checks[name]  # its speed is the machine's
    trial = report["facts"]["trial"]
    assert trial["error"] is None
    assert len(trial["learner_gaps"]) == 3
    assert max(gap["mean"] for gap in trial["learner_gaps"]) < 1e-4
    assert len(trial["update_s"]) == 2
    assert trial["teacher_gap"]["mean"] < 1e-4


def test_memory_and_speed_are_measured(report: dict[str, Any]) -> None:
    trial, links = report["facts"]["trial"], report["facts"]["links"]
    assert trial["planned_gib"] > 0
    assert trial["learner_gib"] > 0
    assert links["put_gb_s"] > 0
    assert links["error"] is None


@pytest.mark.usefixtures("report")
def test_nothing_is_left_in_the_working_directory(folder: Path) -> None:
    assert list(folder.iterdir()) == []
