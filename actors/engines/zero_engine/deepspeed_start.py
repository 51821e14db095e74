"""Start of DeepSpeed's engine. Set `DS_ACCELERATOR` before importing this module, which imports DeepSpeed."""

from __future__ import annotations

import os
from typing import Any

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from actors.engines.zero_engine.clipped_adamw import ClippedAdamW
from actors.engines.zero_engine.config import deepspeed_config
from actors.engines.zero_engine.policy_model import PolicyModel
from rlad.config.learner import LearnerConfig
from rlad.errors import EngineError


def start_deepspeed(model: PolicyModel, config: LearnerConfig, *, bfloat16: bool) -> Any:
    """Start DeepSpeed's engine around a model, on the device that the configuration reserves. Collective.

    Args:
        model: Model to train.
        config: Learner configuration.
        bfloat16: Whether the weights are bfloat16; float32 otherwise.

    Raises:
        ConfigError: ZeRO does not support the settings.
        EngineError: DeepSpeed's device is not the configured one.
    """
    on_gpu = config.gpus_per_rank > 0
    device = get_accelerator().device_name()
    if (device != "cpu") != on_gpu:
        raise EngineError(
            f"learner.gpus_per_rank is {config.gpus_per_rank:g}, but DeepSpeed's device is {device}: "
            + ("no GPU is visible to this process" if on_gpu else "the GPUs were not hidden before its import")
        )
    trained = model.trained_parameters()
    settings = deepspeed_config(
        config, bfloat16=bfloat16, on_gpu=on_gpu, num_parameters=sum(parameter.numel() for parameter in trained)
    )
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # required by DeepSpeed
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1)
    # DeepSpeed's shared-memory collectives are compiled on first use, and spin forever if a rank dies. gloo raises.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    optimizer = None
    if config.zero_stage == 0:
        adamw = settings.pop("optimizer")["params"]
        adamw.pop("torch_adam")
        optimizer = ClippedAdamW(trained, max_gradient_norm=config.optimizer.max_gradient_norm, **adamw)
        settings["gradient_clipping"] = 0.0  # DeepSpeed would use its default of 1 otherwise
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine
