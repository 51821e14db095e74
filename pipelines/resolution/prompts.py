"""Prompts of a run: read, checked and tokenised once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlad.config import EvaluationConfig, EvaluationSuite, PromptSource, RunConfig
from rlad.data.chat import encode_prompts, load_tokenizer
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Prompt records and their tokens.

    Attributes:
        records: Prompt records.
        token_ids: int32 [P] of each record, in the same order.
    """

    records: list[PromptRecord]
    token_ids: list[np.ndarray]


def prepare_prompts(source: PromptSource, config: RunConfig | EvaluationSuite, student: Path | str) -> EncodedPrompts:
    """Read prompts and apply the student's chat template.

    Args:
        source: Where the prompts come from.
        config: Its verifiers must cover all tasks, and its `rollout.max_prompt_tokens` bounds the prompts.
        student: Directory of the student, whose tokenizer is used.

    Raises:
        DataError: A prompt cannot be read or is too long.
        PlanError: A task has no verifier.
    """
    records = load_prompts(source)
    _require_verifiers(records, config.verifiers.keys())
    tokenizer = load_tokenizer(student)
    return EncodedPrompts(
        records=records, token_ids=encode_prompts(tokenizer, records, config.rollout.max_prompt_tokens)
    )


def require_disjoint(training: EncodedPrompts, evaluation: EncodedPrompts) -> None:
    """Refuse evaluation prompts that are also training prompts.

    Raises:
        PlanError: With the number of shared prompts and the id of one.
    """
    trained = {ids.tobytes() for ids in training.token_ids}
    shared = [
        record.id
        for record, ids in zip(evaluation.records, evaluation.token_ids, strict=True)
        if ids.tobytes() in trained
    ]
    if shared:
        raise PlanError(
            f"{len(shared)} evaluation prompts are also training prompts, for example {shared[0]}: "
            "use different prompts for the evaluation"
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
            f"no verifier for task {', '.join(unknown)}: the configuration has verifiers for {', '.join(tasks)}"
        )
