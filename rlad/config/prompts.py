"""Prompt sources."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import PositiveInt


class KnightsKnavesPrompts(ConfigModel):
    """Knights & Knaves puzzles, generated; each has exactly one solution."""

    source: Literal["knights_knaves"] = "knights_knaves"
    form: Literal["sentences", "compact"] = Field(
        "sentences", description="Sentences for language models, or one character a token for tiny ones."
    )
    people: dict[Annotated[int, Field(ge=2, le=8)], Annotated[float, Field(gt=0)]] = Field(
        description="Share of puzzles by number of people."
    )
    count: PositiveInt = Field(
        description="Number of puzzles. There are only 399 of 2 people: training repeats them, evaluation refuses."
    )
    split: Literal["train", "evaluation"] = Field(
        description="Puzzles are split by a hash of themselves: the two can never overlap."
    )
    seed: int = 0


class PromptFile(ConfigModel):
    """A JSONL or parquet file of `id, prompt (messages or text), task, answer, metadata`."""

    source: Literal["file"] = "file"
    path: str = Field(description="A .jsonl or .parquet file.")
    form: Literal["sentences", "compact"] = Field(
        "sentences", description="For parquet files of the K&K set, which are read as they are."
    )
    limit: PositiveInt | None = Field(None, description="Read only the first so many.")


class ReasoningGymPrompts(ConfigModel):
    """Problems of one reasoning-gym task, generated (the extra `reasoning-gym`). The prompts' `task` is the name of the dataset."""

    source: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field(description="Name of the task in reasoning-gym, for example `chain_sum`.")
    size: PositiveInt = Field(description="Number of problems, all different.")
    split: Literal["train", "evaluation"] = Field(
        description="Problems are split by a hash of their question: the two can never overlap."
    )
    seed: int = 0
    settings: dict[str, Any] = Field(
        {},
        description="The task's own settings, for example `{min_terms: 2, max_terms: 4}`; without `seed` and `size`.",
    )

    @model_validator(mode="after")
    def _seed_and_size_are_ours(self) -> Self:
        if ours := sorted({"seed", "size"} & self.settings.keys()):
            raise ValueError(f"{' and '.join(ours)} in `settings`: set them beside `settings`, not in it")
        return self


PromptSource = Annotated[KnightsKnavesPrompts | PromptFile | ReasoningGymPrompts, Field(discriminator="source")]
