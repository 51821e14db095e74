"""Evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, field_validator

from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import Fraction, PositiveInt
from rlad.config.prompts import PromptSource
from rlad.config.rollout import RolloutConfig, VerifierPoolConfig
from rlad.config.shared import ClusterConfig, ModelConfig
from rlad.errors import ConfigError
from rlad.verifiers import VerifierConfig


class EvaluationConfig(ConfigModel):
    prompts: PromptSource
    every_steps: Annotated[int, Field(ge=0)] = Field(10, description="0 evaluates only before and after.")
    samples: PositiveInt = Field(1, description="Responses a prompt (k of mean@k and pass@k).")
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Fraction = 0.95
    max_response_tokens: PositiveInt | None = Field(None, description="Default: that of the rollouts.")
    group_by: str | list[str] = Field(
        "task",
        description="Metadata key whose values become the table's rows, for example `people`; or several, each with rows of its own: `[task, people]`.",
    )

    @field_validator("group_by")
    @classmethod
    def _keys_differ(cls, group_by: str | list[str]) -> str | list[str]:
        if isinstance(group_by, list) and (not group_by or len(set(group_by)) < len(group_by)):
            raise ValueError("a list names at least one metadata key, and none twice")
        return group_by

    @property
    def group_label(self) -> str:
        """What the rows of the table are, as its heading."""
        return self.group_by if isinstance(self.group_by, str) else ", ".join(self.group_by)


class EvaluationSuite(ConfigModel):
    """What `rlad eval` needs and no more: prompt sets with their sampling, verifiers, engines. All sets are evaluated by the same engines."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    seed: int = 0
    student: ModelConfig = Field(description="The model; `rlad eval MODEL` replaces its path.")
    verifiers: dict[str, VerifierConfig] = Field(description="By the prompts' `task`.")
    verifier_pool: VerifierPoolConfig = VerifierPoolConfig()
    rollout: RolloutConfig = RolloutConfig()
    sets: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)], EvaluationConfig],
        Field(min_length=1),
    ] = Field(description="Prompt sets by name; `every_steps` means nothing here.")
    cluster: ClusterConfig = ClusterConfig()

    def only(self, names: Sequence[str]) -> Self:
        """The same with these sets alone.

        Raises:
            ConfigError: a name that no set has.
        """
        unknown = [name for name in names if name not in self.sets]
        if unknown:
            raise ConfigError(f"no evaluation set {', '.join(unknown)}: there are {', '.join(self.sets)}")
        return self.model_copy(update={"sets": {name: self.sets[name] for name in names}})
