"""The DeepSpeed configuration of the learner, and its learning-rate schedule. Pure functions."""

from __future__ import annotations

import math
from typing import Any

from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.errors import ConfigError

# Upper bound of the buffer in which ZeRO reduces gradients, in elements. DeepSpeed's own default, 5e8, is 2 GB in float32.
_LARGEST_REDUCE_BUCKET = 200_000_000


def deepspeed_config(config: LearnerConfig, *, bfloat16: bool, on_gpu: bool, num_parameters: int) -> dict[str, Any]:
    """The settings under which DeepSpeed leaves the arithmetic of a step to us.

    `managed_gradient_accumulation: false` makes `step()` the only boundary, so an optimizer step may have any number of micro-batches; nothing is
    divided by their number. Gradients are accumulated and reduced in float32 whatever the weights' precision is.

    Args:
        bfloat16: the weights' precision; the optimizer keeps float32 masters of them.
        on_gpu: communication then overlaps with the backward pass.
        num_parameters: of the model, to size the reduction buffer.

    Raises:
        ConfigError: what ZeRO stage 0 does not do: gradients of bfloat16 weights in float32, and offloading the optimizer.
    """
    if bfloat16 and config.zero_stage == 0:
        raise ConfigError(
            "learner.zero_stage 0 would accumulate bfloat16 gradients; set it to 1, which keeps float32 masters and gradients"
        )
    if config.offload_optimizer and config.zero_stage == 0:
        raise ConfigError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3, got 0")
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": min(num_parameters, _LARGEST_REDUCE_BUCKET),
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
    # PyTorch's fused AdamW runs on CPU and GPU; DeepSpeed's own would be compiled on first use.
    return {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "torch_adam": True,
        "fused": True,
    }


def learning_rate(config: OptimizerConfig, update: int, total_updates: int) -> float:
    """The learning rate of optimizer update `update`, counted from 0 over the whole run. Updates that were not applied do not count.

    The first `warmup_steps` rise linearly to `config.lr`, none of them at 0. The decay after them would reach 0 one update behind the last, so no
    update is wasted.
    """
    if update < config.warmup_steps:
        return config.lr * (update + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (update - config.warmup_steps) / max(1, total_updates - config.warmup_steps))
    return config.lr * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
