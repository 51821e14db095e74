"""Prompt sources: generated puzzles, prompt files, hub data sets, reasoning-gym tasks, and mixtures of them."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
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


class PromptRows(ConfigModel):
    """How the rows of a data set are read as prompts.

    The layout is recognised by its columns; `rlad prompts` shows how a data set is read.
    """

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
        None, description="Number of rows to read from the start of the data set; null means all."
    )
    invalid_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="Whether a row that is not a valid prompt is an error, or is left out and counted."
    )
    duplicates: Literal["keep", "drop", "refuse"] | None = Field(
        None,
        description="Treatment of rows whose prompt and answer occurred before. They are always counted. Null keeps "
        "rows that have ids of their own and drops the others.",
    )


class PromptFile(PromptRows):
    """Prompts of data files: JSON Lines, JSON, CSV, Parquet or Arrow, also compressed, on a disk or an object store."""

    source: Annotated[Literal["file"], Field(description="Selects this prompt source.")] = "file"
    path: str = Field(
        description="A file, a folder of files, or a glob; local, or on an object store as `s3://BUCKET/KEY` or "
        "`gs://BUCKET/KEY`. Endings: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, each also "
        "with `.gz`, `.bz2`, `.xz` or `.zst`."
    )
    split: Literal["train", "evaluation"] | None = Field(
        None,
        description="Part of the prompts to use, for training and evaluation from one file. A hash of the text decides "
        "the part of a prompt, so the two never overlap. Null uses all.",
    )
    evaluation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the distinct prompts that `split: evaluation` uses; must be equal in both parts."
    )
    encoding: str = Field("utf-8", description="Encoding of text files, for example `gb18030` or `latin-1`.")

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name
        except LookupError as error:
            raise ValueError(f"unknown encoding {encoding!r}; expected a name that Python knows") from error

    @property
    def label(self) -> str:
        """Name of the source in messages."""
        return self.path


class HubPrompts(PromptRows):
    """Prompts of a data set on the Hugging Face hub, read by the library `datasets`.

    Requires the extra `hub`. `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the token variables apply. Code of a data
    set is never executed.
    """

    source: Annotated[Literal["hub"], Field(description="Selects this prompt source.")] = "hub"
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")] = Field(
        description="Name on the hub, for example `openai/gsm8k`."
    )
    config: str | None = Field(
        None, description="Configuration (subset) of the data set, for example `main`; null means its default."
    )
    split: str = Field("train", description="Split, also a slice such as `train[:1000]` or `train+validation`.")
    revision: str | None = Field(
        None,
        description="Branch, tag or commit; null means the default branch. A run records the commit, and continues "
        "with it.",
    )

    @property
    def label(self) -> str:
        """Name of the source in messages."""
        config = f", config {self.config}" if self.config else ""
        return f"hub data set {self.dataset}{config}, split {self.split}"


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


SinglePromptSource = Annotated[
    KnightsKnavesPrompts | PromptFile | HubPrompts | ReasoningGymPrompts, Field(discriminator="source")
]


class MixturePart(ConfigModel):
    """One source of a mixture."""

    prompts: SinglePromptSource = Field(description="Source of the prompts, with its own task and other settings.")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Share of the training prompts, relative to the weights of the other sources. Null for all sources "
        "means that each prompt occurs once an epoch.",
    )


class PromptMixture(ConfigModel):
    """Prompts of several sources. Ids get the name of the source as prefix, and `part` in the metadata is this name.

    An epoch has as many entries as the sources have prompts. Each source fills its share of them, and takes its prompts
    in a seeded order of its own, which continues in the next epoch. The sources are spread evenly, so each step has
    about the shares of the weights.
    """

    source: Annotated[Literal["mixture"], Field(description="Selects this prompt source.")] = "mixture"
    parts: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)], MixturePart] = Field(
        min_length=1, description="Sources by name."
    )
    duplicates: Literal["keep", "drop", "refuse"] = Field(
        "keep",
        description="Treatment of prompts that occur with the same answer in an earlier source. They are always "
        "counted.",
    )

    @model_validator(mode="after")
    def _all_parts_have_weights_or_none(self) -> Self:
        without = [name for name, part in self.parts.items() if part.weight is None]
        if without and len(without) < len(self.parts):
            raise ValueError(
                f"either all parts of a mixture have a weight or none; {', '.join(without)} has none: add "
                "`weight`, or remove the other weights"
            )
        return self

    @property
    def has_weights(self) -> bool:
        """Whether the parts have weights."""
        return any(part.weight is not None for part in self.parts.values())


PromptSource = Annotated[
    KnightsKnavesPrompts | PromptFile | HubPrompts | ReasoningGymPrompts | PromptMixture,
    Field(discriminator="source"),
]


def files_of(source: PromptSource) -> dict[str, PromptFile]:
    """Return the prompt files of a source, by the key that leads to each: empty for the source itself."""
    if isinstance(source, PromptFile):
        return {"": source}
    if isinstance(source, PromptMixture):
        return {
            f"parts.{name}.prompts": part.prompts
            for name, part in source.parts.items()
            if isinstance(part.prompts, PromptFile)
        }
    return {}


def pinned(source: PromptSource, versions: Mapping[str, str]) -> PromptSource:
    """Return a source whose hub data sets are read at these commits, by the labels of the data sets."""
    if isinstance(source, PromptMixture):
        parts = {
            name: part.model_copy(update={"prompts": pinned(part.prompts, versions)})
            for name, part in source.parts.items()
        }
        return source.model_copy(update={"parts": parts})
    if isinstance(source, HubPrompts):
        return source.model_copy(update={"revision": versions.get(source.label, source.revision)})
    return source
