"""Workload of a deployment: Kubernetes names, paths as seen from the pods, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.kubernetes.workload import kubernetes_name, read_workload
from rlad.config import RunConfig
from rlad.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-0.6b-kk-2k", "qwen3-0-6b-kk-2k"),
        ("Math_30K.v2", "math-30k-v2"),
        ("8b-math", "run-8b-math"),
        ("x" * 36, "x" * 36),
    ],
)
def test_names_are_dns_labels(name: str, expected: str) -> None:
    assert kubernetes_name(name) == expected


def test_names_that_are_cut_stay_unique() -> None:
    first, second = (kubernetes_name("a-long-name-of-a-run-that-is-cut-off-" + end) for end in ("first", "second"))
    assert first != second
    assert max(len(first), len(second)) <= 36


def test_paths_are_resolved_against_the_shared_storage() -> None:
    settings = read_workload(
        CONFIGS / "qwen3_8b_math_30k.yaml", ["student.path=/models/mine", "teacher.path=starter:kk/teacher"]
    ).settings
    assert settings["student"]["path"] == "/models/mine"
    assert settings["teacher"]["path"] == "starter:kk/teacher"
    assert settings["prompts"]["path"] == "/mnt/rlad/data/skywork_or1_math.jsonl"
    assert settings["evaluation"]["prompts"]["path"] == "/mnt/rlad/data/aime24.jsonl"


@pytest.mark.parametrize(
    ("reference", "seen"),
    [
        ("Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B@main"),
        ("s3://bucket/model", "s3://bucket/model"),
        ("registry:kk@production", "registry:kk@production"),
        ("./models/mine", "/mnt/rlad/models/mine"),
        ("models/a/b", "/mnt/rlad/models/a/b"),
    ],
)
def test_only_directories_are_resolved_against_the_shared_storage(reference: str, seen: str) -> None:
    settings = read_workload(CONFIGS / "qwen3_8b_math_30k.yaml", [f"student.path={reference}"]).settings
    assert settings["student"]["path"] == seen


def test_overrides_apply_to_every_method_of_a_comparison() -> None:
    workload = read_workload(CONFIGS / "ablation_alpha_cpu.yaml", ["training.steps=3", "rollout.workers=2"])
    assert all(
        isinstance(run, RunConfig) and (run.training.steps, run.rollout.workers) == (3, 2) for run in workload.runs
    )
    assert all(method["overrides"]["training.steps"] == 3 for method in workload.settings["methods"].values())
    assert workload.settings["methods"]["alpha-0.3"]["overrides"]["objective"] == {"name": "trrd", "alpha": 0.3}
    with pytest.raises(ConfigError, match="set each separately, as evaluation.NAME=VALUE"):
        read_workload(CONFIGS / "ablation_alpha_cpu.yaml", ["evaluation={every_steps: 1}"])


def test_model_name_with_shell_syntax_is_refused() -> None:
    workload = read_workload(CONFIGS / "eval_math.yaml", ["student.path=$(reboot)"])
    with pytest.raises(ConfigError, match="is not allowed in a job's command"):
        workload.entrypoint("/mnt/rlad/runs/x")
