"""A live run whose weights go straight from a ZeRO-3 learner of two ranks into vLLM engines, while workers are lost and added and a rank is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines.run_directory import RunDirectory, read_json_lines

pytestmark = pytest.mark.engine

SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
OVERRIDES = [
    "weights.transport=gloo", "learner.ranks=2", "learner.zero_stage=3", "training.updates_per_step=1", "training.steps=2000",
    "objective={name: grpo}", "teacher=null", "evaluation.every_steps=0", "checkpoints.every_steps=1", "cluster.num_cpus=4",
]  # fmt: skip
DEADLINE_S = 240


def rlad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipelines", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def processes_of(run: subprocess.Popen[str], actor: str) -> list[psutil.Process]:
    return [each for each in psutil.Process(run.pid).children(recursive=True) if actor in " ".join(each.cmdline())]


def wait_for(claim: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert process.poll() is None, f"the run ended before {what}: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.2)


def test_engines_hold_the_learners_weights_whoever_joins_dies_or_is_restarted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")

    def steps() -> int:
        return len(read_json_lines(run.metrics))

    command = [sys.executable, "-m", "pipelines", "run", str(SMOKE), *OVERRIDES, "--run-dir", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            wait_for(lambda: steps() >= 2, process, "first steps")

            # The only worker: the step cannot end before its replacement has been sent the version that the learner holds meanwhile.
            [worker] = processes_of(process, "ray::RolloutWorker")
            worker.send_signal(signal.SIGKILL)
            hurt_at = steps()
            wait_for(lambda: steps() >= hurt_at + 3, process, "steps with another worker")

            assert rlad("scale", run.path, "rollout=2").returncode == 0
            wait_for(lambda: '"ready": 2' in rlad("status", run.path, "--json").stdout, process, "a second worker")
            grown_at = steps()
            wait_for(lambda: steps() >= grown_at + 2, process, "steps with two workers")

            ranks = processes_of(process, "RayTrainWorker")
            assert len(ranks) == 2
            ranks[0].send_signal(signal.SIGKILL)
            restarted_at = steps()
            wait_for(lambda: steps() >= restarted_at + 3, process, "steps after a rank was lost")

            assert rlad("stop", run.path).returncode == 0
            _, stderr = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "stopped on request after" in stderr
    assert "Traceback" not in stderr
    metrics = read_json_lines(run.metrics)
    assert [line["step"] for line in metrics] == list(range(1, len(metrics) + 1))
    gaps = [line["learner/logprob_gap_max"] for line in metrics if "learner/logprob_gap_max" in line]
    assert len(gaps) > 5
    assert max(gaps) <= 1e-4, "every token was sampled with the weights that the learner had"
    assert max(line["learner/send_s"] for line in metrics) > 0, "a worker was sent weights in the middle of a step"
    counts = json.loads(rlad("ledger", run.path, "--json").stdout)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
