"""Plans on a machine without models and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.model_shape import shape_of
from pipelines.planning.plan import Plan, available_resources, make_plan
from rlad.config import load_run_config

from .plan_inputs import CONFIGS, errors

LOGIC = CONFIGS / "qwen3_1.7b_kk_8k.yaml"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def warnings_of(plan: Plan) -> list[str]:
    return [finding.text for finding in plan.findings if finding.level == "warning"]


def test_well_known_models_are_planned_with_the_built_in_table_and_the_plan_says_so() -> None:
    plan = make_plan(load_run_config(LOGIC, []), Resources(cpus=96, gpus=8), gpu_memory_gib=80)
    assert errors(plan) == []
    (source,) = [text for text in warnings_of(plan) if "built-in table" in text]
    assert "sizes of student Qwen/Qwen3-1.7B, teacher Qwen/Qwen3-8B are from the built-in table" in source
    assert "HF_HUB_OFFLINE forbids to download it" in source
    assert any("prompts are not checked" in text for text in warnings_of(plan))
    assert all(pool.worker_gib is not None for pool in plan.pools)


def test_an_unknown_model_that_cannot_be_reached_is_an_error() -> None:
    config = load_run_config(LOGIC, ["student.path=team/unheard-of", "teacher.path=./nowhere"])
    first, second = errors(make_plan(config, Resources(cpus=96, gpus=8), gpu_memory_gib=80))
    assert first.startswith("cannot read student team/unheard-of: model team/unheard-of@main is not in the cache")
    assert second.startswith("cannot read teacher ./nowhere: no model at './nowhere'")


def test_a_model_too_large_for_its_gpus_is_found_without_its_files() -> None:
    config = load_run_config(LOGIC, ["teacher.path=Qwen/Qwen3-32B"])
    (problem,) = errors(make_plan(config, Resources(cpus=96, gpus=8), gpu_memory_gib=40))
    assert problem.startswith("a teacher worker needs about 6")


def test_a_directory_of_a_well_known_name_is_not_taken_from_the_table(tmp_path: Path) -> None:
    assert shape_of(str(tmp_path / "Qwen" / "Qwen3-8B")) is None
    shape = shape_of("Qwen/Qwen3-8B")
    assert shape is not None
    assert shape.parameters == 8_190_735_360


def test_gpus_of_another_machine_come_with_its_cpus() -> None:
    config = load_run_config(LOGIC, ["cluster.num_cpus=3"])
    assert available_resources(config, cpus=None, gpus=8) == Resources(cpus=96, gpus=8)
    assert available_resources(config, cpus=7, gpus=8) == Resources(cpus=7, gpus=8)
    assert available_resources(config, cpus=None, gpus=0) == Resources(cpus=3, gpus=0)


def test_given_gpus_are_planned_without_the_cluster_of_the_file() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    assert config.cluster.address == "auto"  # no cluster runs here
    assert available_resources(config, cpus=400, gpus=64) == Resources(cpus=400, gpus=64)
    assert available_resources(config, cpus=None, gpus=64) == Resources(cpus=768, gpus=64)
