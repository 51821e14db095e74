"""Configuration of the pools that produce responses: rollout workers, trace generation and verifiers."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt, Seconds, or_null
from rlad.config.engine_arguments import EngineArguments, require_engine_arguments


class RolloutConfig(ConfigModel):
    """Rollout workers: vLLM engines that sample responses from the student."""

    workers: PositiveInt = Field(
        1, description="Number of rollout workers at start. `rlad scale` changes it during a run."
    )
    min_workers: PositiveInt = Field(1, description="Minimum number of rollout workers.")
    max_workers: PositiveInt | None = Field(
        None, description="Maximum number of rollout workers; null means unlimited."
    )
    autoscale: bool = Field(
        False,
        description="Add a worker while generation limits the step time, and drain one while workers are idle. "
        "Requires `max_workers`.",
    )
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="Responses sampled per prompt.")
    max_prompt_tokens: PositiveInt = Field(1024, description="Maximum length of a prompt, in tokens.")
    max_response_tokens: PositiveInt = Field(2048, description="Maximum length of a response, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Sampling temperature in training. The learner divides its logits by the same value."
    )
    top_p: float = Field(
        1.0, description="Must be 1 in training, because truncated sampling makes the likelihood ratio wrong."
    )
    top_k: int = Field(0, description="Must be 0 (off) in training, for the same reason.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="Texts that end a response, for example `[</answer>]`, besides the model's end-of-sequence tokens "
        "and the end of turn of its chat template. The text stays in the response.",
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="Tokens that end a response, in addition to the same ones. The token stays in the response."
    )
    tensor_parallel: PositiveInt = Field(1, description="GPUs per engine.")
    max_sequences: PositiveInt = Field(256, description="Maximum number of sequences an engine decodes at once.")
    gpu_memory_fraction: Fraction = Field(0.9, description="Fraction of the GPU memory that an engine reserves.")
    kv_cache_gib: Annotated[int, Field(ge=1)] = Field(
        1, description="Size of the KV cache of an engine on CPU, in GiB. Ignored on GPUs."
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved per rollout worker.")
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs reserved per rollout worker; 0 runs the engine on CPU."
    )
    threads: PositiveInt = Field(1, description="Compute threads of an engine on CPU.")
    group_timeout_s: Seconds = Field(
        600, description="Deadline for sampling one group, in seconds. A group that misses it is submitted again."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Maximum number of workers the pool replaces before the run fails."
    )

    engine_args: EngineArguments = Field(
        {},
        description="Further arguments of vLLM's `AsyncEngineArgs`, for example `{quantization: fp8, "
        "async_scheduling: false}`. Arguments that other settings of rlad determine are refused.",
    )

    @model_validator(mode="after")
    def _engine_arguments_exist(self) -> Self:
        require_engine_arguments(self.engine_args, scores=False)
        return self

    @model_validator(mode="after")
    def _workers_within_bounds(self) -> Self:
        if not self.min_workers <= self.workers <= (self.max_workers or self.workers):
            raise ValueError(
                "rollout.workers must be between rollout.min_workers and rollout.max_workers; got workers "
                f"{self.workers}, min_workers {self.min_workers}, max_workers {or_null(self.max_workers)}"
            )
        if self.autoscale and self.max_workers is None:
            raise ValueError("rollout.autoscale requires rollout.max_workers; got null")
        return self

    @model_validator(mode="after")
    def _sampling_is_not_truncated(self) -> Self:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"rollout.top_p must be 1 and rollout.top_k must be 0; got {self.top_p:g} and {self.top_k}. Truncated "
                "sampling renormalizes pi_old over the remaining tokens, so the likelihood ratio would be wrong. "
                "Evaluation may use both settings"
            )
        return self


class GeneratorConfig(ConfigModel):
    """Overrides of `rollout` for sampling from the teacher. Null fields inherit the value of `rollout`."""

    workers: PositiveInt | None = Field(None, description="Number of rollout workers.")
    max_response_tokens: PositiveInt | None = Field(None, description="Maximum length of a response, in tokens.")
    tensor_parallel: PositiveInt | None = Field(None, description="GPUs per engine.")
    max_sequences: PositiveInt | None = Field(
        None, description="Maximum number of sequences an engine decodes at once."
    )
    gpu_memory_fraction: Fraction | None = Field(
        None, description="Fraction of the GPU memory that an engine reserves."
    )
    kv_cache_gib: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Size of the KV cache of an engine on CPU, in GiB."
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = Field(None, description="CPUs reserved per rollout worker.")
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = Field(None, description="GPUs reserved per rollout worker.")
    threads: PositiveInt | None = Field(None, description="Compute threads of an engine on CPU.")
    group_timeout_s: Seconds | None = Field(
        None, description="Deadline for sampling all traces of one prompt, in seconds."
    )
    max_restarts: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Maximum number of workers the pool replaces before the run fails."
    )
    engine_args: EngineArguments | None = Field(
        None, description="Further arguments of vLLM's `AsyncEngineArgs`, instead of those of `rollout`."
    )

    @model_validator(mode="after")
    def _engine_arguments_exist(self) -> Self:
        require_engine_arguments(self.engine_args or {}, scores=False)
        return self


class OfflineConfig(ConfigModel):
    """Offline distillation: supervised training on verified responses of the teacher (traces).

    Requires objective `sft`. Traces are sampled and verified before training starts. A training step takes
    `training.prompts_per_step` traces, each a group of one response.
    """

    traces: str | None = Field(
        None,
        description="Directory with the traces of an earlier run (its `traces/`). Training uses them instead of "
        "generating new traces; null generates them.",
    )
    traces_per_prompt: PositiveInt = Field(4, description="Responses sampled from the teacher per prompt.")
    max_accepted_per_prompt: PositiveInt | None = Field(
        None, description="Maximum number of correct responses kept per prompt; null means all."
    )
    max_prompts: PositiveInt | None = Field(
        None, description="Number of prompts to use from the start of `prompts`; null means all."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Sampling temperature of the teacher.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling threshold of the teacher.")
    prompts_per_part: PositiveInt = Field(
        64,
        description="Prompts whose traces are written to disk together. If the run is killed, the traces of "
        "unwritten prompts are lost.",
    )
    rollout: GeneratorConfig = Field(GeneratorConfig(), description="Overrides of `rollout` for the teacher's engines.")

    def generator_of(self, rollout: RolloutConfig) -> RolloutConfig:
        """Return the settings of the teacher's engines: `rollout` with the overrides of this section."""
        return rollout.model_copy(update=self.rollout.model_dump(exclude_none=True))


class VerifierPoolConfig(ConfigModel):
    """Actors that run verifiers in killable child processes."""

    workers: PositiveInt = Field(1, description="Number of verifier actors.")
    processes_per_worker: PositiveInt = Field(1, description="Child processes per verifier actor.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved per verifier actor.")
    timeout_s: Seconds = Field(
        10,
        description="Hard deadline for verifying one response, in seconds. After it the process is killed and the "
        "outcome is `timeout`.",
    )
    memory_mib: PositiveInt = Field(
        1024,
        description="Memory that a child process may take beyond what it holds after its start, in MiB. A verifier "
        "that exceeds it fails with the outcome `error`.",
    )
    environment: list[str] = Field(
        [],
        description="Names of environment variables that verifiers need. Child processes get these and those that are "
        "known to be harmless (`PATH`, `HOME`, locale, Python's), no others.",
    )
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="Largest fraction of the latest 256 responses (at least 32) whose verification may have the "
        "outcome `timeout` or `error`. Such responses are left out of the update and of the group's baseline. Above "
        "the fraction the run ends with the verifier's own words; 1 means unlimited.",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Maximum number of verifier actors that the pool replaces before the run fails."
    )
