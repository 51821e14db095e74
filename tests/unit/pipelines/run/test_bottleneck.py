from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.run.bottleneck import bottleneck, bottleneck_of_run, pool_sizes
from rlad.config import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs"
WORKERS = {"rollout": 3, "teacher": 2, "verifier": 4, "learner": 1}


def step(**seconds: float) -> dict[str, Any]:
    times = {"generate": 0.0, "score": 0.0, "teacher": 0.0, "learn": 0.0, "weights": 0.0} | seconds
    whole = times["generate"] + times["score"] + times["learn"] + times["weights"]
    return {**{f"time/{name}_s": value for name, value in times.items()}, "time/step_s": whole, "reward/mean": 0.5}


def test_saving_of_one_more_rollout_worker_by_hand() -> None:
    found = bottleneck(step(generate=8.0, learn=1.5, weights=0.5), WORKERS)
    assert (found.pool, found.share) == ("rollout", pytest.approx(0.8))
    assert found.saving == pytest.approx(0.2)
    assert found.sentence() == "rollout bounds the step (80%): one more rollout worker would save about 20%"


@pytest.mark.parametrize(
    ("seconds", "pool"),
    [
        ({"generate": 1.0, "score": 6.0, "teacher": 5.0, "learn": 2.0}, "teacher"),
        ({"generate": 1.0, "score": 6.0, "teacher": 1.0, "learn": 2.0}, "verifier"),
        ({"generate": 1.0, "score": 1.0, "teacher": 1.0, "learn": 5.0}, "learner"),
        ({"generate": 1.0, "learn": 1.0, "weights": 4.0}, "weights"),
    ],
)
def test_the_bottleneck_is_the_pool_with_the_longest_wait(seconds: dict[str, float], pool: str) -> None:
    assert bottleneck(step(**seconds), WORKERS).pool == pool


def test_small_savings_are_not_suggested() -> None:
    found = bottleneck(step(generate=3.0, learn=2.9, weights=2.9), {**WORKERS, "rollout": 63})
    assert found.sentence() == "rollout bounds the step (34%)"
    assert bottleneck(step(weights=2.0), WORKERS).sentence() == "the weight update bounds the step (100%)"


def test_the_bottleneck_of_a_run_comes_from_its_median_step() -> None:
    steps = [step(generate=8.0, learn=2.0), step(generate=8.0, learn=2.0), step(generate=8.0, learn=500.0)]
    found = bottleneck_of_run(steps, WORKERS)
    assert found is not None
    assert (found.pool, found.share) == ("rollout", pytest.approx(0.8))
    assert bottleneck_of_run([], WORKERS) is None


def test_pool_sizes_come_from_the_configuration() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    sizes = pool_sizes(config)
    assert sizes["rollout"] == config.rollout.workers
    assert sizes["teacher"] == sum(teacher.replicas for teacher in config.teachers_by_id.values())
    assert sizes["verifier"] == config.verifier_pool.workers * config.verifier_pool.processes_per_worker
    assert "teacher" not in pool_sizes(
        load_run_config(CONFIGS / "smoke_cpu.yaml", ["objective={name: grpo}", "teacher=null"])
    )
