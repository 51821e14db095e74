"""Run whose teachers are the initial student: sampler, both teacher engines and learner agree on log-probabilities.

Two teachers, one per engine, score every group. Their mixture equals the student again, as does the frozen reference
policy. The run therefore also covers several scoring pools.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.run.directory import RunDirectory, read_json_lines

from ..live_run import finish_run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STUDENT = "path: starter:kk-smoke/student, dtype: float32, cpus_per_replica: 0.25"
SETTINGS = [
    "training.steps=1",
    "training.updates_per_step=1",  # all tokens are sampled by the initial student
    "evaluation.prompts.count=2",
    "evaluation.every_steps=0",
    "cluster.num_cpus=3",
    "objective.reference_kl=0.01",
    "reference={dtype: float32, engine: transformers, cpus_per_replica: 0.25}",
    "teacher=null",
    f"teachers.plain={{{STUDENT}, engine: transformers}}",
    f"teachers.paged={{{STUDENT}, engine: vllm, token_budget: 2048}}",
    "teacher_routes.knights_knaves={plain: 1, paged: 3}",
]


def test_log_ratio_of_teachers_equal_to_the_student_is_engine_noise(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "self")
    finish_run(SMOKE, *SETTINGS, directory=run)
    [step] = read_json_lines(run.metrics)
    assert step["teacher/plain_tokens"] == step["teacher/paged_tokens"] == step["rollout/response_tokens"] > 0
    assert step["learner/missing_teacher_tokens"] == step["learner/missing_reference_tokens"] == 0
    assert 0 <= step["objective/log_ratio_teacher_abs_mean"] <= 1e-4
    assert abs(step["objective/reference_kl"]) <= 1e-6
    assert step["learner/logprob_gap_max"] <= 1e-4
