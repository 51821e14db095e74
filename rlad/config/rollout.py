"""Rollout, trace generation and verifier pools."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import Fraction, PositiveInt, Seconds


class RolloutConfig(ConfigModel):
    """The pool of vLLM engines that sample from the student."""

    workers: PositiveInt = Field(1, description="With which the run starts; `rlad scale` changes it.")
    min_workers: PositiveInt = Field(1, description="Below which the pool is not shrunk while the run lives.")
    max_workers: PositiveInt | None = Field(None, description="Above which it is not grown; none sets no bound.")
    autoscale: bool = Field(
        False,
        description="Add a worker while generation bounds the steps, take one away while generation is hidden and idle; needs `max_workers`.",
    )
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="Responses sampled for each prompt.")
    max_prompt_tokens: PositiveInt = 1024
    max_response_tokens: PositiveInt = 2048
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Sampling temperature in training; the learner's logits are scaled alike."
    )
    top_p: float = Field(1.0, description="Must be 1 in training: truncated sampling rescales the likelihood ratio.")
    top_k: int = Field(0, description="Must be 0 (off) in training, for the same reason.")
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one engine.")
    max_sequences: PositiveInt = Field(256, description="Sequences an engine decodes at once.")
    gpu_memory_fraction: Fraction = Field(0.9, description="Share of a GPU's memory the engine takes.")
    kv_cache_gib: Annotated[int, Field(ge=1)] = Field(1, description="KV cache of an engine on CPU, in GiB.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = Field(1, description="Compute threads of an engine on CPU.")
    group_timeout_s: Seconds = Field(600, description="Deadline of one group; past it the group is issued again.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Workers the pool may replace before the run ends."
    )

    @model_validator(mode="after")
    def _bounds_hold(self) -> Self:
        if not self.min_workers <= self.workers <= (self.max_workers or self.workers):
            raise ValueError(
                f"workers {self.workers} must be between min_workers {self.min_workers} and max_workers {self.max_workers}"
            )
        if self.autoscale and self.max_workers is None:
            raise ValueError("autoscale needs max_workers: up to how many machines may it ask for?")
        return self

    @model_validator(mode="after")
    def _sampling_must_not_truncate(self) -> Self:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                "top_p below 1 or top_k above 0 in training rollouts rescales pi_old on the kept tokens, so the likelihood ratio is wrong; "
                "leave them off here (evaluation may use them)"
            )
        return self


class GeneratorConfig(ConfigModel):
    """Where the pool of vLLM engines that sample from the teacher differs from `rollout`, which gives every setting left out here."""

    workers: PositiveInt | None = None
    max_response_tokens: PositiveInt | None = None
    tensor_parallel: PositiveInt | None = Field(None, description="GPUs of one engine.")
    max_sequences: PositiveInt | None = Field(None, description="Sequences an engine decodes at once.")
    gpu_memory_fraction: Fraction | None = None
    kv_cache_gib: Annotated[int, Field(ge=1)] | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    threads: PositiveInt | None = None
    group_timeout_s: Seconds | None = Field(None, description="Deadline of all traces of one prompt.")
    max_restarts: Annotated[int, Field(ge=0)] | None = None


class OfflineConfig(ConfigModel):
    """Offline distillation: the teacher's own responses, sampled and verified before the training, which is supervised. Goes with objective `sft`.

    A training step takes `training.prompts_per_step` traces, each a group of one response.
    """

    traces: str | None = Field(
        None,
        description="Folder of traces that an earlier run made (its `traces/`): they are trained on, and nothing is generated.",
    )
    traces_per_prompt: PositiveInt = Field(4, description="Responses the teacher samples for each prompt.")
    max_accepted_per_prompt: PositiveInt | None = Field(
        None, description="Take at most so many right ones of a prompt; default: all."
    )
    max_prompts: PositiveInt | None = Field(
        None, description="Take only the first so many prompts of `prompts`; default: all."
    )
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    prompts_per_part: PositiveInt = Field(
        64,
        description="Prompts whose traces are written together; a kill costs those that wait, a minute's worth at most.",
    )
    rollout: GeneratorConfig = GeneratorConfig()

    def generator_of(self, rollout: RolloutConfig) -> RolloutConfig:
        """Settings of the teacher's engines, for a run whose student is sampled with `rollout`."""
        return rollout.model_copy(update=self.rollout.model_dump(exclude_none=True))


class VerifierPoolConfig(ConfigModel):
    """Actors that run verifiers in processes which can be killed."""

    workers: PositiveInt = 1
    processes_per_worker: PositiveInt = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    timeout_s: Seconds = Field(
        10,
        description="Hard deadline of judging one response: past it the process is killed and the outcome is `timeout`.",
    )
