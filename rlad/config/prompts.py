"""Prompt sources: generated puzzles, prompt files, and reasoning-gym tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel, PositiveInt


class KnightsKnavesPrompts(ConfigModel):
    """Generated Knights & Knaves puzzles, each with exactly one solution."""

    source: Annotated[Literal["knights_knaves"], Field(description="Selects this prompt source.")] = "knights_knaves"
    form: Literal["sentences", "compact"] = Field(
        "sentences",
        description="Text of the puzzles: `sentences` for language models, `compact` (one character per token) for "
        "starter models.",
    )
    people: dict[Annotated[int, Field(ge=2, le=8)], Annotated[float, Field(gt=0)]] = Field(
        description="Relative frequency of puzzles by number of people, for example `{3: 0.5, 4: 0.5}`."
    )
    count: PositiveInt = Field(
        description="Number of puzzles. Only 399 puzzles of 2 people exist: training repeats them, evaluation fails."
    )
    split: Literal["train", "evaluation"] = Field(
        description="Split to draw from. A hash of the puzzle decides its split, so the two never overlap."
    )
    seed: int = Field(0, description="Random seed of the generator.")


class PromptFile(ConfigModel):
    """A JSONL or Parquet file with the columns `id, prompt (messages or text), task, answer, metadata`."""

    source: Annotated[Literal["file"], Field(description="Selects this prompt source.")] = "file"
    path: str = Field(description="Path of a `.jsonl` or `.parquet` file.")
    form: Literal["sentences", "compact"] = Field(
        "sentences", description="Text of the puzzles in Parquet files of the K&K data set; other files ignore it."
    )
    limit: PositiveInt | None = Field(
        None, description="Number of prompts to read from the start of the file; null means all."
    )


class ReasoningGymPrompts(ConfigModel):
    """Generated problems of one reasoning-gym data set, whose name is also the `task` of the prompts.

    Requires the extra `reasoning-gym`.
    """

    source: Annotated[Literal["reasoning_gym"], Field(description="Selects this prompt source.")] = "reasoning_gym"
    dataset: str = Field(description="Name of the reasoning-gym data set, for example `chain_sum`.")
    size: PositiveInt = Field(description="Number of problems, without duplicates.")
    split: Literal["train", "evaluation"] = Field(
        description="Split to draw from. A hash of the question decides its split, so the two never overlap."
    )
    seed: int = Field(0, description="Random seed of the generator.")
    settings: dict[str, Any] = Field(
        {},
        description="Further settings of the data set, for example `{min_terms: 2, max_terms: 4}`. `seed` and `size` "
        "are not allowed here.",
    )

    @model_validator(mode="after")
    def _settings_exclude_seed_and_size(self) -> Self:
        if misplaced := sorted({"seed", "size"} & self.settings.keys()):
            raise ValueError(
                f"`settings` must not contain {' or '.join(misplaced)}: move it one level up, next to `settings`"
            )
        return self


PromptSource = Annotated[KnightsKnavesPrompts | PromptFile | ReasoningGymPrompts, Field(discriminator="source")]
