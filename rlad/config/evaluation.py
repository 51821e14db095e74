"""Configuration of evaluations: the evaluation of a run, and suites for `rlad eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt
from rlad.config.prompts import PromptMixture, PromptSource
from rlad.config.rollout import RolloutConfig, VerifierPoolConfig
from rlad.config.shared import ClusterConfig, FailureConfig, ModelConfig
from rlad.errors import ConfigError
from rlad.verifiers import VerifierConfig


class LatencyConfig(ConfigModel):
    """Measurement of the latency: a short run after the evaluation of a set, on its prompts."""

    requests: PositiveInt = Field(64, description="Number of responses.")
    concurrency: PositiveInt = Field(8, description="Requests at once on each rollout worker.")


class EvaluationConfig(ConfigModel):
    """Evaluation of the student on a fixed set of prompts."""

    prompts: PromptSource = Field(description="Source of the evaluation prompts.")
    every_steps: Annotated[int, Field(ge=0)] = Field(
        10, description="Training steps between evaluations; 0 evaluates only before and after training."
    )
    samples: PositiveInt = Field(1, description="Responses per prompt (the k of mean@k and pass@k).")
    temperature: Annotated[float, Field(ge=0)] = Field(0.6, description="Sampling temperature; 0 means greedy.")
    top_p: Fraction = Field(0.95, description="Nucleus sampling threshold.")
    max_response_tokens: PositiveInt | None = Field(
        None, description="Maximum length of a response, in tokens; null means `rollout.max_response_tokens`."
    )
    group_by: str | list[str] = Field(
        "task",
        description="Metadata key whose values become the rows of the result table, for example `people`. A list such "
        "as `[task, people]` adds rows for each key.",
    )

    overlap: Literal["refuse", "drop_training", "drop_evaluation"] = Field(
        "refuse",
        description="Treatment of evaluation prompts that are also training prompts, by the text of their question: "
        "refuse the run, or leave them out of the training or of the evaluation. `rlad eval` ignores it.",
    )

    latency: LatencyConfig | None = Field(
        None,
        description="Measurement of the time of whole responses, at a fixed number of requests at once; `{}` takes "
        "the defaults, null does not measure. Only `rlad eval` measures it.",
    )

    @field_validator("prompts")
    @classmethod
    def _mixture_has_no_weights(cls, prompts: PromptSource) -> PromptSource:
        if isinstance(prompts, PromptMixture) and prompts.has_weights:
            raise ValueError("an evaluation takes each prompt once, so a mixture has no `weight` here: remove it")
        return prompts

    @field_validator("group_by")
    @classmethod
    def _keys_are_unique(cls, group_by: str | list[str]) -> str | list[str]:
        if isinstance(group_by, list) and (not group_by or len(set(group_by)) < len(group_by)):
            raise ValueError("group_by must list at least one metadata key, without duplicates")
        return group_by

    @property
    def group_label(self) -> str:
        """Column heading for the rows of the result table."""
        return self.group_by if isinstance(self.group_by, str) else ", ".join(self.group_by)


class EvaluationSuite(ConfigModel):
    """Settings of `rlad eval`: prompt sets with sampling settings, verifiers and engines.

    All sets share the same engines.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = Field(
        description="Name of the suite."
    )
    seed: int = Field(0, description="Random seed of sampling.")
    student: ModelConfig = Field(description="Model to evaluate. `rlad eval MODEL` replaces `student.path`.")
    verifiers: dict[str, VerifierConfig] = Field(description="Verifiers by the prompts' `task`.")
    verifier_pool: VerifierPoolConfig = Field(VerifierPoolConfig(), description="Verifier actors.")
    rollout: RolloutConfig = Field(RolloutConfig(), description="Rollout workers.")
    sets: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)], EvaluationConfig],
        Field(min_length=1),
    ] = Field(description="Prompt sets by name. `every_steps` is ignored.")
    failures: FailureConfig = Field(FailureConfig(), description="Failure handling.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Ray cluster.")

    def only(self, names: Sequence[str]) -> Self:
        """Return a copy restricted to the named sets.

        Raises:
            ConfigError: The suite has no set of one of the names.
        """
        unknown = [name for name in names if name not in self.sets]
        if unknown:
            raise ConfigError(f"no evaluation set {', '.join(unknown)}; the suite has {', '.join(self.sets)}")
        return self.model_copy(update={"sets": {name: self.sets[name] for name in names}})
