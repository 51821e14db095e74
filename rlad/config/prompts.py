"""Prompt sources: generated puzzles, prompt files, and reasoning-gym tasks."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

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


PromptColumn = Literal["id", "prompt", "task", "answer", "metadata"]


class PromptFile(ConfigModel):
    """Prompts of data files: JSON Lines, JSON, CSV, Parquet or Arrow, also compressed.

    The layout is recognised by its columns; `rlad prompts FILE` shows how a file is read.
    """

    source: Annotated[Literal["file"], Field(description="Selects this prompt source.")] = "file"
    path: str = Field(
        description="A file, a folder of files, or a glob. Endings: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, "
        "`.parquet`, `.arrow`, each also with `.gz`, `.bz2`, `.xz` or `.zst`."
    )
    columns: dict[PromptColumn, str | None] = Field(
        {},
        description="Columns of the fields `id`, `prompt`, `task`, `answer` and `metadata`, where the layout is not "
        "recognised or others are to be used, for example `{prompt: problem, answer: reward_model.ground_truth}`. Dots "
        "lead into mappings, lists (by number) and JSON text. `{id: null}` makes ids from the content.",
    )
    task: str | None = Field(
        None,
        min_length=1,
        description="Task of prompts without a `task` column. Null means that of the layout, for example `math`, else "
        "`default`.",
    )
    chat: bool | None = Field(
        None,
        description="Whether a prompt that is text becomes a user message, to which the chat template is applied, or "
        "is encoded as it stands. Null applies the template except in rlad's own layout and to text that begins with a "
        "turn of a chat template.",
    )
    system_prompt: str | None = Field(
        None, min_length=1, description="System message of every prompt; replaces that of the file. Null adds none."
    )
    prompt_suffix: str = Field("", description="Text appended to the last message of every prompt.")
    form: Literal["sentences", "compact"] = Field(
        "sentences", description="Text of the puzzles in files of the K&K data set; other files ignore it."
    )
    limit: PositiveInt | None = Field(
        None, description="Number of rows to read from the start of the file; null means all."
    )
    split: Literal["train", "evaluation"] | None = Field(
        None,
        description="Part of the prompts to use, for training and evaluation from one file. A hash of the text decides "
        "the part of a prompt, so the two never overlap. Null uses all.",
    )
    evaluation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the distinct prompts that `split: evaluation` uses; must be equal in both parts."
    )
    invalid_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="Whether a row that is not a valid prompt is an error, or is left out and counted."
    )
    duplicates: Literal["keep", "drop", "refuse"] | None = Field(
        None,
        description="Treatment of rows whose prompt and answer occurred before. They are always counted. Null keeps "
        "rows that have ids of their own and drops the others.",
    )
    encoding: str = Field("utf-8", description="Encoding of text files, for example `gb18030` or `latin-1`.")

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name
        except LookupError as error:
            raise ValueError(f"unknown encoding {encoding!r}; expected a name that Python knows") from error


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
