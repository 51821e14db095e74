"""DeepSpeed configuration of the learner, and its learning-rate schedule. Pure functions."""

from __future__ import annotations

import math
from typing import Any

from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.errors import ConfigError

LARGEST_REDUCE_BUCKET = 200_000_000
"""Maximum size of ZeRO's gradient reduction buffer, elements. DeepSpeed's default of 5e8 takes 2 GB in float32."""


def deepspeed_config(config: LearnerConfig, *, bfloat16: bool, on_gpu: bool, num_parameters: int) -> dict[str, Any]:
    """Return a DeepSpeed configuration that leaves loss scaling and gradient accumulation to the trainer.

    `managed_gradient_accumulation: false` makes `step()` the only boundary of an update. An update may then have any
    number of micro-batches, and nothing is divided by that number. Gradients are accumulated and reduced in float32 for
    any dtype of the weights.

    Args:
        config: Learner configuration.
        bfloat16: Whether the weights are bfloat16 (with float32 masters in the optimizer); float32 otherwise.
        on_gpu: Whether the rank has a GPU. Communication then overlaps with the backward pass.
        num_parameters: Number of trained parameters, which bounds the reduction buffer.

    Raises:
        ConfigError: The settings need float32 gradients of bfloat16 weights or optimizer offload, which ZeRO stage 0
            does not support.
    """
    if bfloat16 and config.zero_stage == 0:
        raise ConfigError(
            "learner.zero_stage 0 accumulates gradients of bfloat16 weights in bfloat16; "
            "set learner.zero_stage to 1, which keeps float32 masters and gradients"
        )
    if config.offload_optimizer and config.zero_stage == 0:
        raise ConfigError("learner.offload_optimizer requires learner.zero_stage 1, 2 or 3; got 0")
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": min(num_parameters, LARGEST_REDUCE_BUCKET),
        "overlap_comm": on_gpu and config.zero_stage >= 2,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "optimizer": {"type": "AdamW", "params": _adamw_settings(config.optimizer)},
        "gradient_clipping": config.optimizer.max_gradient_norm,
        "zero_optimization": zero,
    }
    if bfloat16:
        settings |= {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return settings


def _adamw_settings(optimizer: OptimizerConfig) -> dict[str, Any]:
    # PyTorch's fused AdamW runs on CPU and GPU. DeepSpeed's own optimizer would be compiled on first use.
    return {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "torch_adam": True,
        "fused": True,
    }


def learning_rate(config: OptimizerConfig, update: int, total_updates: int) -> float:
    """Return the learning rate of an optimizer update.

    The rate rises linearly to `config.lr` over the first `warmup_steps` updates, starting above 0. The decay that
    follows reaches 0 one update after the last, so no update has a learning rate of 0.

    Args:
        config: Optimizer configuration.
        update: Index of the update in the run, from 0. Skipped updates are not counted.
        total_updates: Number of updates of the run.
    """
    if update < config.warmup_steps:
        return config.lr * (update + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (update - config.warmup_steps) / max(1, total_updates - config.warmup_steps))
    return config.lr * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
