"""Test of scaling and stopping a live run from another process, with a worker killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.status import STOPPED_EXIT_CODE

from ..live_run import LiveRun

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"


def rlad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def status_of(run: RunDirectory) -> dict[str, dict[str, int]]:
    result = rlad("status", run.path, "--json")
    assert result.returncode == 0, result.stderr
    state: dict[str, Any] | None = json.loads(result.stdout)
    return {} if state is None else state["pools"]


def pool_of(run: RunDirectory) -> dict[str, int]:
    return status_of(run).get("rollout", {})


def pools_of(run: RunDirectory) -> dict[str, int]:
    """Return the number of ready workers of each pool."""
    return {name: pool["ready"] for name, pool in status_of(run).items()}


@pytest.mark.slow
def test_live_run_scales_up_survives_a_kill_scales_down_and_stops_without_losing_a_group(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    overrides = [
        "training.steps=2000",
        "evaluation.every_steps=0",
        "checkpoints.every_steps=1000",
        "cluster.num_cpus=4",
    ]
    command = [sys.executable, "-m", "pipelines", "run", str(SMOKE), *overrides, "--run-dir", str(run.path)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        live = LiveRun(process, run)
        try:
            live.wait_for_steps(2)
            refused = rlad("scale", run.path, "learner=4")
            assert refused.returncode == 1
            assert "cannot scale 'learner': this run can scale rollout, verifier, teacher" in refused.stderr

            assert rlad("scale", run.path, "rollout=3", "verifier=2", "teacher=2").returncode == 0
            live.wait_for(
                lambda: pools_of(run) == {"rollout": 3, "verifier": 2, "teacher": 2}, "more workers of each pool"
            )
            live.wait_for_steps(live.steps() + 3)

            victim = next(
                child
                for child in psutil.Process(process.pid).children(recursive=True)
                if "ray::RolloutWorker" in " ".join(child.cmdline())
            )
            os.kill(victim.pid, signal.SIGKILL)
            live.wait_for_steps(live.steps() + 2)

            assert rlad("scale", run.path, "rollout=1", "verifier=1", "teacher=1").returncode == 0
            live.wait_for(
                lambda: pool_of(run) == {"target": 1, "ready": 1, "starting": 0, "draining": 0}, "one rollout worker"
            )
            live.wait_for(
                lambda: pools_of(run) == {"rollout": 1, "verifier": 1, "teacher": 1}, "one worker of each pool"
            )
            live.wait_for_steps(live.steps() + 2)
            assert rlad("stop", run.path).returncode == 0
            _, stderr = process.communicate(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == STOPPED_EXIT_CODE
    assert "error:" not in stderr
    assert "stopped on request after" in stderr
    assert "Traceback" not in stderr
    counts = json.loads(rlad("ledger", run.path, "--json").stdout)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert counts["trained_steps"] == len(read_json_lines(run.metrics))
    written = [path.name for path in run.checkpoints.glob("step-*")]
    assert written == [f"step-{counts['trained_steps']:06d}"], (
        "the stop writes a checkpoint, long before the 1000th step"
    )
    status = rlad("status", run.path)
    assert "stopped; continue it with --resume" in status.stdout
    assert json.loads(rlad("status", run.path, "--json").stdout)["phase"] == "stopped"
    assert rlad("scale", run.path, "rollout=2").returncode == 1
