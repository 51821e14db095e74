"""Prompts of a run: read, checked and tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rlad.config import EvaluationConfig, EvaluationSuite, PromptSource, RunConfig
from rlad.data.chat import encode_prompts, load_tokenizer
from rlad.data.order import Mixture
from rlad.data.prompt_files import PromptReading
from rlad.data.prompts import read_source
from rlad.data.records import PromptRecord, dataset_fingerprint, question_key
from rlad.errors import ConfigError, DataError, PlanError

_LOG = logging.getLogger(__name__)
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Prompt records and their tokens.

    Attributes:
        records: Prompt records.
        token_ids: int32 [P] of each record, in the same order.
        too_long: Number of prompts left out because they have too many tokens.
        question_keys: Keys of the records' questions (see `rlad.data.records.question_key`).
        mixture: Sources of the records; None if all are of one source.
        versions: Versions of the files and data sets that are not local, by their names.
        locations: File and row of each record, in the same order; empty for generated prompts.
    """

    records: list[PromptRecord]
    token_ids: list[np.ndarray]
    too_long: int = 0
    question_keys: list[bytes] = field(default_factory=list)
    mixture: Mixture | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    locations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question_keys:
            object.__setattr__(self, "question_keys", list(map(question_key, self.records)))

    def select(self, indices: Sequence[int]) -> EncodedPrompts:
        """Return these prompts, in this order."""
        return replace(
            self,
            records=[self.records[index] for index in indices],
            token_ids=[self.token_ids[index] for index in indices],
            question_keys=[self.question_keys[index] for index in indices],
            mixture=self.mixture and self.mixture.select(indices),
            locations=tuple(self.locations[index] for index in indices) if self.locations else (),
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the records."""
        return dataset_fingerprint(self.records)


def prepare_prompts(source: PromptSource, config: RunConfig | EvaluationSuite, student: Path | str) -> EncodedPrompts:
    """Read prompts and apply the student's chat template.

    Args:
        source: Where the prompts come from.
        config: Its verifiers must cover all tasks, its `rollout.max_prompt_tokens` limits the prompts' length, and its
            `student.chat_template_kwargs` go to the chat template.
        student: Directory of the student, whose tokenizer is used.

    Prompts that are too long are left out, and their number is logged.

    Raises:
        DataError: A prompt cannot be read or encoded, or all prompts are too long.
        PlanError: A task has no verifier.
        ConfigError: The chat template does not use an argument of `student.chat_template_kwargs`.
    """
    reading = read_source(source)
    for part in (reading, *reading.parts.values()):
        _log_dropped(part, label_of(source))
    _require_verifiers(reading.records, config.verifiers.keys())
    prompts = encode_reading(
        reading, load_tokenizer(student), config.rollout.max_prompt_tokens, config.student.chat_template_kwargs
    )
    if prompts.too_long:
        _LOG.warning(
            "prompts left out: too_long=%d kept=%d rollout.max_prompt_tokens=%d source=%s",
            prompts.too_long,
            len(prompts.records),
            config.rollout.max_prompt_tokens,
            label_of(source),
        )
    return prompts


def label_of(source: PromptSource) -> str:
    """Return the name of a prompt source in messages."""
    return source.label if source.source == "file" or source.source == "hub" else source.source


def encode_reading(
    reading: PromptReading,
    tokenizer: Any,
    max_tokens: int | None,
    template_arguments: Mapping[str, Any] = MappingProxyType({}),
) -> EncodedPrompts:
    """Encode prompts, and leave out those with more than `max_tokens` tokens; None keeps all.

    Raises:
        ConfigError: The chat template does not use one of `template_arguments`.
        DataError: A prompt cannot be encoded (the message names its file and row), or all prompts are too long.
    """
    try:
        encoded = encode_prompts(tokenizer, reading.records, _NO_LIMIT, template_arguments)
    except DataError as error:
        raise _with_location(error, reading) from error
    prompts = EncodedPrompts(
        records=reading.records,
        token_ids=encoded,
        question_keys=reading.question_keys,
        mixture=reading.mixture,
        versions=reading.versions,
        locations=tuple(map(str, reading.locations)),
    )
    if max_tokens is None:
        return prompts
    kept = [index for index, ids in enumerate(encoded) if len(ids) <= max_tokens]
    if not kept:
        raise DataError(
            f"all {len(encoded)} prompts have more than {max_tokens} tokens, the shortest {min(map(len, encoded))}; "
            "raise rollout.max_prompt_tokens (prompts are never truncated, because that can change the answer)"
        )
    return replace(prompts.select(kept), too_long=len(encoded) - len(kept))


def _with_location(error: DataError, reading: PromptReading) -> DataError:
    """Return the error about a prompt with the file and row of that prompt."""
    text = str(error)
    for record, location in zip(reading.records, reading.locations, strict=False):
        if text.startswith(f"prompt {record.id!r}"):
            remedy = (
                "; to encode the text as it stands, set `columns: {prompt: prompt.0.content}`"
                if "template marker" in text
                else ""
            )
            return DataError(f"{location}: {text}{remedy}")
    return error


def _log_dropped(reading: PromptReading, label: str) -> None:
    if reading.duplicates_dropped or reading.duplicates_kept or reading.other_answers or reading.invalid:
        _LOG.warning(
            "prompts read: kept=%d duplicates_dropped=%d duplicates_kept=%d other_answers=%d invalid_dropped=%d "
            "source=%s",
            len(reading.records),
            reading.duplicates_dropped,
            reading.duplicates_kept,
            reading.other_answers,
            reading.invalid,
            label,
        )


def require_group_key(prompts: EncodedPrompts, config: EvaluationConfig) -> None:
    """Refuse an evaluation whose table cannot be made.

    Raises:
        ConfigError: `group_by` names one metadata key and a prompt lacks it, or several keys and no prompt has one of
            them.
    """
    keys = [config.group_by] if isinstance(config.group_by, str) else config.group_by
    for key in keys:
        lacking = [record for record in prompts.records if key != "task" and key not in record.metadata]
        if lacking and (len(keys) == 1 or len(lacking) == len(prompts.records)):
            raise ConfigError(
                f"evaluation.group_by is {key!r}, but prompt {lacking[0].id} has no such metadata "
                f"(it has: {', '.join(sorted(lacking[0].metadata)) or 'none'})"
            )


def _require_verifiers(records: list[PromptRecord], tasks: Collection[str]) -> None:
    unknown = sorted({record.task for record in records} - set(tasks))
    if unknown:
        raise PlanError(
            f"no verifier for task {', '.join(unknown)}: the configuration has verifiers for {', '.join(tasks)}; add "
            "one, or name the task of a prompt file with `task` or `columns: {task: COLUMN}`"
        )
