"""Configuration of training: the loop, the learner with its optimizer, weight updates and checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt
from rlad.config.lora import LoraConfig


class TrainingConfig(ConfigModel):
    """The training loop: number of steps, batch size and staleness."""

    steps: PositiveInt = Field(
        description="Number of training steps. Each step samples, scores and trains on one batch of prompts."
    )
    prompts_per_step: PositiveInt = Field(32, description="Prompts (groups) per training step.")
    updates_per_step: PositiveInt = Field(
        1,
        description="Optimizer updates per step. The groups of the batch are split in prompt order into this many "
        "equal mini-batches.",
    )
    passes: PositiveInt = Field(
        1,
        description="Passes over the batch per step, each with `updates_per_step` updates on the same mini-batches. "
        "pi_old stays the policy that sampled the batch, so the clip range bounds the distance over all passes.",
    )
    max_refills: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Dynamic sampling (DAPO): a group whose verifier rewards are all equal is replaced by the group of "
        "the next prompt, at most this many times per step. Further such groups are kept; 0 turns it off. The overlong "
        "penalty does not count: a group of correct responses of different lengths is replaced.",
    )
    max_staleness: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Maximum age of a sampled token, in policy versions behind the weights that train on it. 0 is "
        "strictly on-policy. With k > 0, rollout workers run up to k steps ahead of the learner and load new weights "
        "in the middle of a generation.",
    )

    @model_validator(mode="after")
    def _updates_divide_the_batch(self) -> Self:
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                "training.updates_per_step must divide training.prompts_per_step; got updates_per_step "
                f"{self.updates_per_step} and prompts_per_step {self.prompts_per_step}"
            )
        return self

    @property
    def total_updates_per_step(self) -> int:
        """Optimizer updates of a step, over all passes."""
        return self.updates_per_step * self.passes


class OptimizerConfig(ConfigModel):
    """AdamW with gradient clipping and a learning rate schedule."""

    lr: Annotated[float, Field(gt=0)] = Field(1e-6, description="Peak learning rate.")
    betas: tuple[float, float] = Field(
        (0.9, 0.95), description="Decay rates of the running averages of the gradient and its square."
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Term added to the denominator for stability.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decoupled weight decay coefficient.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Optimizer updates over which the learning rate rises linearly from 0."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning rate schedule after warm-up. `linear` and `cosine` decay to 0 at the last update.",
    )
    max_gradient_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients are clipped to this global L2 norm."
    )


class LearnerConfig(ConfigModel):
    """The learner: trains the student with DeepSpeed ZeRO inside Ray Train."""

    ranks: PositiveInt = Field(1, description="Number of learner ranks, over which ZeRO shards.")
    sequence_parallel: PositiveInt = Field(
        1,
        description="Number of consecutive ranks that share each micro-batch (sequence parallelism, DeepSpeed's "
        "Ulysses). Each holds an equal slice of its tokens, and computes attention for a share of the heads. "
        "Activations per rank are divided by it, for long sequences. It must divide `learner.ranks` and the student's "
        "attention heads; ranks that share a micro-batch should be on one node.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="DeepSpeed ZeRO stage: 1 shards the optimizer state across ranks, 2 also the gradients, 3 also "
        "the weights; 0 shards nothing.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimizer settings.")
    lora: LoraConfig | None = Field(
        None, description="Train LoRA adapters instead of all weights. `{}` uses the defaults; null trains all weights."
    )
    micro_batch_tokens: PositiveInt = Field(
        16384,
        description="Maximum number of tokens (prompts included) in one micro-batch, which a rank processes, or "
        "`learner.sequence_parallel` ranks together.",
    )
    logprob_chunk_tokens: PositiveInt = Field(
        1024, description="Tokens whose logits are in memory at once. Lower values need less memory."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass, which saves memory and costs time."
    )
    offload_optimizer: bool = Field(False, description="Keep the optimizer state in host memory.")
    pi_old: Literal["rollout", "recompute"] = Field(
        "rollout",
        description="Source of the behavior policy's log-probabilities: `rollout` takes those of the sampling engine; "
        "`recompute` takes those of the learner's first forward pass.",
    )
    truncated: Literal["keep", "mask"] = Field(
        "keep",
        description="Treatment of responses that reach `rollout.max_response_tokens`: `keep` trains on them, `mask` "
        "excludes them from the loss.",
    )
    max_missing_teacher_fraction: Fraction = Field(
        0.01,
        description="Maximum fraction of teacher scores in a step that may be missing, NaN or infinite. Above it the "
        "step fails.",
    )
    max_nonfinite_steps: PositiveInt = Field(
        3,
        description="Number of consecutive optimizer updates with NaN or infinite gradients after which the run fails.",
    )
    max_logprob_gap: Annotated[float, Field(gt=0)] | None = Field(
        0.1,
        description="Largest mean difference between the log-probabilities of rollout engine and learner for the same "
        "tokens and weights, in nats (`learner/logprob_gap_mean`). Above a fifth of it the run warns. Three steps in a "
        "row above it end the run, because engine and learner then do not compute the same model; null means "
        "unlimited. Not checked if `training.max_staleness` is above 0, since the weights differ then.",
    )
    cpus_per_rank: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved per learner rank.")
    gpus_per_rank: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs reserved per learner rank; 0 trains on CPU."
    )
    threads: PositiveInt = Field(
        1,
        description="Threads of a learner rank: for computing on CPU, and for loading on GPUs (4 are enough).",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Maximum number of times Ray Train restarts the ranks from the last checkpoint."
    )

    @model_validator(mode="after")
    def _ranks_form_sequence_groups(self) -> Self:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                "learner.sequence_parallel must divide learner.ranks, since that many ranks share each micro-batch; "
                f"got sequence_parallel {self.sequence_parallel} and ranks {self.ranks}. Set learner.ranks to a "
                f"multiple of {self.sequence_parallel}, or learner.sequence_parallel to a divisor of {self.ranks}"
            )
        return self

    @property
    def sequence_groups(self) -> int:
        """Number of groups of ranks that share each micro-batch; `ranks` without sequence parallelism."""
        return self.ranks // self.sequence_parallel


class WeightsConfig(ConfigModel):
    """Weight updates: how rollout workers receive the learner's new weights."""

    transport: Literal["object_store", "nccl", "ipc", "gloo"] = Field(
        "object_store",
        description="`object_store` publishes one object through Ray and writes one file per node, verified by "
        "checksum. The other transports send from the learner's memory through vLLM's weight transfer, without a "
        "checksum: `nccl` broadcasts between GPUs, `ipc` maps the memory of a GPU that learner and rollout worker "
        "share, and `gloo` broadcasts between CPUs.",
    )
    full_every: PositiveInt = Field(
        1,
        description="Policy versions from one full publication to the next (`object_store`); 1 publishes every version "
        "in full. The versions between are exact deltas: only the elements that changed are published, compressed. A "
        "version is published in full also where its delta would be larger. Deltas are for nodes joined by a slow "
        "network. They take CPU time to encode, and a copy of the weights in the host memory of learner rank 0.",
    )


class CheckpointConfig(ConfigModel):
    """Checkpoints of the learner."""

    every_steps: PositiveInt = Field(10, description="Training steps between checkpoints.")
    keep: PositiveInt = Field(2, description="Number of most recent checkpoints to keep.")
    grace_period_s: float = Field(
        45.0,
        gt=0,
        description="Time for a checkpoint when the run is stopped (`rlad stop`, SIGTERM, preemption), in seconds. "
        "Keep it below the time until the run is killed: 60 s in the Kubernetes manifests, Ray jobs and schedules of "
        "rlad.",
    )
