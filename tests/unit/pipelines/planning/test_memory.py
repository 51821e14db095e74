"""Memory of engines and learner ranks, computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.model_shape import ModelShape
from pipelines.planning.plan import Finding, make_plan
from pipelines.planning.pool_plans import GIB, engine_gib, learner_gib, offloaded_gib
from rlad.config import LearnerConfig, RunConfig, load_run_config

from .plan_inputs import CONFIGS, prompt_files


def test_memory_of_engine_and_learner() -> None:
    shape = ModelShape(
        parameters=GIB, hidden=0, layers=0, vocabulary=0, attention_width=0, kv_values_per_token=1024, max_tokens=0
    )
    # 2 GiB of bfloat16 weights, 1024 tokens * 1024 values * 2 bytes = 2 MiB of cache, one process on each of 2 GPUs.
    assert engine_gib(shape, "bfloat16", 2, 1024) == pytest.approx(2 + 2 / 1024 + 2)
    on_gpu = {"gpus_per_rank": 1, "ranks": 4}
    for stage, bytes_per_parameter in {0: 16, 1: 4 + 12 / 4, 2: 2 + 14 / 4, 3: 16 / 4}.items():
        config = LearnerConfig(zero_stage=stage, **on_gpu)
        assert learner_gib(shape, config) == pytest.approx(bytes_per_parameter + 1)
    offloaded = LearnerConfig(zero_stage=3, offload_optimizer=True, **on_gpu)
    assert learner_gib(shape, offloaded) == pytest.approx(1 + 1)


def test_memory_of_learner_with_adapters() -> None:
    layers = (("model.layers.0.self_attn.q_proj", 2 * GIB), ("model.layers.0.mlp.up_proj", GIB))
    shape = ModelShape(
        parameters=100 * GIB,
        hidden=0,
        layers=0,
        vocabulary=0,
        attention_width=0,
        kv_values_per_token=0,
        max_tokens=0,
        linear_layers=layers,
    )
    on_gpu: dict[str, Any] = {"gpus_per_rank": 1, "ranks": 4, "lora": {"rank": 2}}
    # 100 GiB of weights and 6 of adapters; gradients and optimizer state of the adapters alone.
    for stage, gib in {0: 212 + 6 * 14, 1: 212 + 6 * (2 + 3), 2: 212 + 6 * 3.5, 3: 53 + 6 * 3.5}.items():
        assert learner_gib(shape, LearnerConfig(zero_stage=stage, **on_gpu)) == pytest.approx(gib + 1)
    on_gpu["lora"] = {"rank": 2, "target_modules": ["up_proj"]}
    assert learner_gib(shape, LearnerConfig(zero_stage=3, offload_optimizer=True, **on_gpu)) == pytest.approx(
        2 * 102 / 4 + 2 * 2 / 4 + 1
    )


def test_adapter_parameters_are_counted_and_unknown_targets_are_errors(qwen: dict[str, Path], tmp_path: Path) -> None:
    def configured(*overrides: str) -> RunConfig:
        settings = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", *prompt_files(tmp_path), *overrides]
        return load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", settings)

    def findings(*overrides: str) -> list[Finding]:
        return make_plan(configured(*overrides), Resources(cpus=1024, gpus=64), gpu_memory_gib=141).findings

    # Of 36 layers q and o have 4096 + 4096 inputs and outputs, k and v 4096 + 1024, the three of the MLP 4096 + 12288.
    trained = 36 * 8 * (2 * 8192 + 2 * 5120 + 3 * 16384)
    assert f"LoRA adapters of rank 8 train {trained / 1e6:.1f} of 8191 million parameters" in [
        finding.text for finding in findings("learner.lora.rank=8")
    ]
    assert offloaded_gib(configured("learner.lora.rank=8")) == pytest.approx(12 * trained / 16 / GIB)
    wrong = findings("learner.lora.target_modules=[q_proj, qkv_proj]")
    assert [finding.text for finding in wrong if finding.level == "error"] == [
        "learner.lora.target_modules: the student has no linear layer qkv_proj"
    ]
