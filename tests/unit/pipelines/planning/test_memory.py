"""Memory of engines and learner ranks, computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.model_shape import ModelShape, shape_of
from pipelines.planning.plan import Finding, make_plan
from pipelines.planning.pool_plans import GIB, engine_gib, learner_gib, offloaded_gib, publishing_gib
from rlad.config import LearnerConfig, RunConfig, load_run_config

from .plan_inputs import BYTES, CONFIGS, prompt_files


def test_memory_of_engine_and_learner() -> None:
    shape = ModelShape(
        parameters=GIB, hidden=0, layers=0, vocabulary=0, attention_width=0, kv_values_per_token=1024, max_tokens=0
    )
    # 2 GiB of bfloat16 weights, 1024 tokens * 1024 values * 2 bytes = 2 MiB of cache, one process on each of 2 GPUs.
    assert engine_gib(shape, "bfloat16", 2, 1024) == pytest.approx(2 + 2 / 1024 + 2)
    on_gpu = {"gpus_per_rank": 1, "ranks": 4}
    # 2 bytes of weights, 4 of float32 gradients and 12 of the optimizer; one or two buffers of 200 million elements.
    for stage, bytes_per_parameter in {0: 18, 1: 6 + 12 / 4, 2: 2 + 16 / 4, 3: 18 / 4}.items():
        config = LearnerConfig(zero_stage=stage, **on_gpu)
        buckets = (2 if stage >= 2 else 1) * 800e6 / GIB
        assert learner_gib(shape, config) == pytest.approx(bytes_per_parameter + buckets + 1)
    offloaded = LearnerConfig(zero_stage=3, offload_optimizer=True, **on_gpu)
    assert learner_gib(shape, offloaded) == pytest.approx(6 / 4 + 1.6e9 / GIB + 1)
    # 18 / 64 and 1.49 GiB of buffers are less than the whole model that each rank loads.
    assert learner_gib(shape, LearnerConfig(zero_stage=3, gpus_per_rank=1, ranks=64)) == pytest.approx(2 + 1)
    # On CPU, where nothing overlaps: 4 + 4 + 8 bytes in float32 over 4 ranks.
    assert learner_gib(shape, LearnerConfig(zero_stage=3, ranks=4)) == pytest.approx(16 / 4 + 0.8e9 / GIB + 1)


def test_memory_of_activations_and_output_layer() -> None:
    shape = ModelShape(
        parameters=0,
        hidden=1024,
        layers=10,
        vocabulary=2**20,
        attention_width=0,
        kv_values_per_token=0,
        max_tokens=0,
    )
    # Logits of 1,024 tokens, twice, and the gradient of the output layer, twice: 8 GiB each.
    for checkpointing, per_token in ((True, 1024 * (2 * 10 + 34)), (False, 1024 * 34 * 10)):
        config = LearnerConfig(gpus_per_rank=1, activation_checkpointing=checkpointing, micro_batch_tokens=2**14)
        assert learner_gib(shape, config) == pytest.approx(8 + 8 + per_token * 2**14 / GIB + 1)
    # On CPU activations are float32, and the gradient of the output layer is added in place.
    on_cpu = LearnerConfig(activation_checkpointing=True, micro_batch_tokens=2**14)
    assert learner_gib(shape, on_cpu) == pytest.approx(8 + 4 + 2 * 1024 * 54 * 2**14 / GIB + 1)


def test_memory_of_the_shipped_learner_of_8b(qwen: dict[str, Path]) -> None:
    """16 ranks, 32k tokens over 4 of them, checkpointing: 18 P / 16, 36 layers of 4,096, output layer of 151,936."""
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml").learner
    shape = shape_of(str(qwen["8B"]))
    assert shape is not None
    states = 18 * 8_190_735_360 / 16
    activations = 32_768 / 4 * 4096 * (2 * 36 + 34)
    logits, head, buckets = 1024 * 151_936 * 8, 4096 * 151_936 * 8, 1.6e9
    assert (config.ranks, config.sequence_parallel, config.micro_batch_tokens) == (16, 4, 32_768)
    expected = (states + activations + logits + head + buckets) / GIB + 1
    assert learner_gib(shape, config) == pytest.approx(expected)
    assert expected == pytest.approx(20.2, abs=0.05)
    alone = config.model_copy(update={"sequence_parallel": 1})
    assert learner_gib(shape, alone) == pytest.approx(expected + 3 * activations / GIB)


def test_plan_names_the_heads_that_ranks_cannot_share(qwen: dict[str, Path], tmp_path: Path) -> None:
    def texts(*overrides: str) -> dict[str, str]:
        models = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", *prompt_files(tmp_path)]
        config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", [*models, *overrides])
        findings = make_plan(config, Resources(cpus=1024, gpus=64), gpu_memory_gib=141).findings
        return {finding.text: finding.level for finding in findings}

    assert texts()["4 learner ranks share each micro-batch, at most 8192 tokens a rank"] == "ok"
    refusal = (
        "learner.sequence_parallel must divide the student's 32 attention heads, and divide its 8 key-value heads or "
        "be a multiple of them; got 12. Set it to one of 1, 2, 4, 8, 16, 32"
    )
    assert texts("learner.ranks=12", "learner.sequence_parallel=12")[refusal] == "error"


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
    for stage, gib in {0: 212 + 6 * 16, 1: 212 + 6 * (4 + 3), 2: 212 + 6 * 4, 3: 212}.items():
        buckets = 0.8e9 / GIB * {0: 1, 1: 1, 2: 2, 3: 0}[stage]  # stage 3 needs most while it loads
        assert learner_gib(shape, LearnerConfig(zero_stage=stage, **on_gpu)) == pytest.approx(gib + buckets + 1)
    on_gpu["lora"] = {"rank": 2, "target_modules": ["up_proj"]}
    two = LearnerConfig(zero_stage=2, offload_optimizer=True, **on_gpu)
    assert learner_gib(shape, two) == pytest.approx(2 * 102 + 2 * 4 / 4 + 1.6e9 / GIB + 1)


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


def test_memory_for_publishing_counts_the_copy_that_deltas_need(qwen: dict[str, Path]) -> None:
    shape = shape_of(str(qwen["0.6B"]))
    assert shape is not None
    gathered = 2 * shape.parameters / GIB

    def published(*settings: str) -> tuple[float, list[str]]:
        config = load_run_config(
            CONFIGS / "qwen3_0.6b_kk_2k.yaml",
            [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES, *settings],
        )
        plan = make_plan(config, Resources(cpus=512, gpus=128), gpu_memory_gib=80)
        found = [finding.text for finding in plan.findings if "in host memory" in finding.text]
        return publishing_gib(config, shape), found

    assert published() == (gathered, [f"learner rank 0 holds {gathered:.1f} GiB of gathered weights in host memory"])
    assert published("weights.full_every=10") == (
        2 * gathered,
        [f"learner rank 0 holds {2 * gathered:.1f} GiB of gathered weights and a copy for deltas in host memory"],
    )
    assert published("weights.transport=nccl") == (0.0, [])
