"""The learner: optimizer, checkpoints and weight updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import Fraction, PositiveInt, Seconds
from rlad.config.lora import LoraConfig


class OptimizerConfig(ConfigModel):
    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Optimizer steps over which the learning rate rises from 0."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Decay after the warm-up, down to 0 at the last step."
    )
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0


class LearnerConfig(ConfigModel):
    """The student's trainer: DeepSpeed ZeRO inside Ray Train."""

    ranks: PositiveInt = Field(1, description="Data-parallel workers.")
    zero_stage: Literal[0, 1, 2, 3] = 2
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters instead of all weights; `{}` takes the defaults."
    )
    micro_batch_tokens: PositiveInt = Field(
        16384, description="Tokens (prompts included) a rank packs into one forward and backward pass."
    )
    logprob_chunk_tokens: PositiveInt = Field(1024, description="Tokens whose logits exist at once.")
    activation_checkpointing: bool = False
    offload_optimizer: bool = Field(False, description="Keep optimizer state in host memory.")
    pi_old: Literal["rollout", "recompute"] = Field(
        "rollout",
        description="Behaviour log-probabilities from the sampling engine (one forward fewer), or recomputed by the learner before the first update.",
    )
    truncated: Literal["keep", "mask"] = Field(
        "keep", description="Whether responses that hit the token budget are trained on."
    )
    max_missing_teacher_fraction: Fraction = Field(
        0.01, description="Above this share of missing, NaN or infinite teacher scores, the step fails."
    )
    max_nonfinite_steps: PositiveInt = Field(
        3, description="Optimizer steps in a row with NaN or infinite gradients before the run ends."
    )
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = 1
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Times Ray Train may restart the ranks from the last checkpoint."
    )
    step_timeout_s: Seconds = Field(3600, description="Deadline of one training step after its last group has arrived.")


class WeightsConfig(ConfigModel):
    """How new weights get from the learner into the rollout workers' engines."""

    transport: Literal["object_store", "nccl", "ipc", "gloo"] = Field(
        "object_store",
        description="`object_store`: one object, a file a node, checked by its checksum. The others go straight from the learner's memory, by vLLM's weight "
        "transfer, without a checksum: `nccl` broadcasts from GPU to GPU, `ipc` maps the memory of the one GPU that learner and worker share, `gloo` "
        "broadcasts between CPUs.",
    )


class CheckpointConfig(ConfigModel):
    every_steps: PositiveInt = 10
    keep: PositiveInt = 2
