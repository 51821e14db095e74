"""Learning-rate schedule and DeepSpeed configuration."""

from __future__ import annotations

import pytest

from actors.engines.zero_engine.config import deepspeed_config, learning_rate
from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.errors import ConfigError


def test_constant_schedule_rises_during_warmup_and_stays() -> None:
    config = OptimizerConfig(lr=4e-3, warmup_steps=3)
    assert [learning_rate(config, update, 100) for update in (0, 1, 2, 3, 4, 99)] == pytest.approx(
        [1e-3, 2e-3, 3e-3, 4e-3, 4e-3, 4e-3]
    )


def test_linear_schedule_reaches_zero_one_update_after_the_last() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=1, schedule="linear")
    assert [learning_rate(config, update, 5) for update in range(6)] == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_schedule_is_at_half_of_the_rate_in_the_middle() -> None:
    config = OptimizerConfig(lr=2.0, schedule="cosine")
    assert [learning_rate(config, update, 6) for update in (0, 2, 3, 4, 6)] == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])


def test_schedule_beyond_the_planned_end_stays_at_zero() -> None:
    assert learning_rate(OptimizerConfig(schedule="linear"), 12, 10) == 0.0


def test_stage_zero_in_bfloat16_is_refused() -> None:
    with pytest.raises(ConfigError, match="set learner.zero_stage to 1"):
        deepspeed_config(LearnerConfig(zero_stage=0), bfloat16=True, on_gpu=False, num_parameters=10)


def test_offloading_at_stage_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="requires learner.zero_stage 1, 2 or 3; got 0"):
        deepspeed_config(
            LearnerConfig(zero_stage=0, offload_optimizer=True), bfloat16=False, on_gpu=False, num_parameters=10
        )


def test_bfloat16_weights_have_float32_gradients() -> None:
    settings = deepspeed_config(LearnerConfig(zero_stage=3), bfloat16=True, on_gpu=True, num_parameters=10)
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["communication_data_type"] == "fp32"


def test_reduction_buffer_is_not_larger_than_the_model() -> None:
    settings = deepspeed_config(LearnerConfig(), bfloat16=False, on_gpu=False, num_parameters=1234)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1234
