"""Planned size of full-vocabulary scores, and memory of the learner that receives hidden states."""

from __future__ import annotations

import pytest

from pipelines.planning.model_shape import ModelShape
from pipelines.planning.teacher_scores import hidden_state_gib, score_size_notes
from rlad.config import RunConfig
from rlad.config.load import load_run_config

from .plan_inputs import CONFIGS

GIB = 2**30
SHAPE = ModelShape(
    parameters=0, hidden=4096, layers=1, vocabulary=2**17, attention_width=0, kv_values_per_token=0, max_tokens=0
)


def full_run(*overrides: str, **teacher: str) -> RunConfig:
    """Return the 8K run with `opd` over the vocabulary: 32 prompts of 8 responses of 8,192 tokens."""
    sizes = ("training.prompts_per_step=32", "rollout.group_size=8")
    run = load_run_config(CONFIGS / "qwen3_1.7b_kk_8k.yaml", [*sizes, *overrides]).model_dump()
    run["teacher"] = {**run["teacher"], **teacher}
    return RunConfig.model_validate({**run, "objective": {"name": "opd", "estimator": "full"}})


def test_bytes_of_a_token_and_a_step() -> None:
    tokens = 32 * 8 * full_run(send="hidden_states").rollout.max_response_tokens
    [(is_large, text)] = score_size_notes(full_run(send="hidden_states"), {"teacher": SHAPE})
    assert is_large == (tokens * 8196 > 16 * GIB)
    assert f"8,196 bytes a token (hidden_states), at most {tokens * 8196 / GIB:.1f} GiB a step" in text
    [(is_large, text)] = score_size_notes(full_run(engine="transformers"), {"teacher": SHAPE})
    assert is_large
    assert "1,048,584 bytes a token (logprobs)" in text
    assert text.endswith("hidden states would take 8,196 bytes a token. Set teacher.send to hidden_states")
    assert not [*score_size_notes(load_run_config(CONFIGS / "qwen3_1.7b_kk_8k.yaml"), {"teacher": SHAPE})]


def test_memory_of_output_layer_states_and_logits() -> None:
    settings = ("learner.micro_batch_tokens=16384", "learner.logprob_chunk_tokens=1024")
    on_gpu = full_run(*settings, send="hidden_states")
    assert on_gpu.learner.gpus_per_rank > 0
    # 1 GiB of weights, 128 MiB of states, and two tensors of 1,024 logits of 512 MiB each.
    assert hidden_state_gib(SHAPE, "bfloat16", on_gpu) == pytest.approx(1 + 0.125 + 1)
    assert hidden_state_gib(SHAPE, "float32", on_gpu) == pytest.approx(2 + 0.25 + 1)
