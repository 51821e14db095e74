"""Prompts made ready for a run: read, judged for fit, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlad.config import EvaluationConfig, EvaluationSuite, PromptSource, RunConfig
from rlad.data.chat import encode_prompts, load_tokenizer
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Prompt records and their tokens, in step."""

    records: list[PromptRecord]
    token_ids: list[np.ndarray]


def prepare_prompts(source: PromptSource, config: RunConfig | EvaluationSuite, tokenizer_path: str) -> EncodedPrompts:
    """Read prompts and apply the student's chat template.

    Raises:
        DataError: a prompt cannot be read or is too long.
        PlanError: a task without a verifier.
    """
    records = load_prompts(source)
    unknown = sorted({record.task for record in records} - config.verifiers.keys())
    if unknown:
        raise PlanError(
            f"no verifier for task {', '.join(unknown)}: the configuration has verifiers for {', '.join(config.verifiers)}"
        )
    tokenizer = load_tokenizer(tokenizer_path)
    return EncodedPrompts(
        records=records, token_ids=encode_prompts(tokenizer, records, config.rollout.max_prompt_tokens)
    )


def require_disjoint(training: EncodedPrompts, evaluation: EncodedPrompts) -> None:
    """Refuse an evaluation on prompts that are trained on.

    Raises:
        PlanError: with the number of shared prompts and one of them.
    """
    trained = {ids.tobytes() for ids in training.token_ids}
    shared = [
        record.id
        for record, ids in zip(evaluation.records, evaluation.token_ids, strict=True)
        if ids.tobytes() in trained
    ]
    if shared:
        raise PlanError(
            f"{len(shared)} evaluation prompts are also trained on, for example {shared[0]}: give the evaluation prompts of its own"
        )


def require_group_key(prompts: EncodedPrompts, config: EvaluationConfig) -> None:
    """Refuse an evaluation whose table cannot be made.

    Raises:
        ConfigError: a prompt lacks the metadata key that `group_by` names, or, where it names several, one that no prompt has.
    """
    keys = [config.group_by] if isinstance(config.group_by, str) else config.group_by
    for key in keys:
        lacking = [record for record in prompts.records if key != "task" and key not in record.metadata]
        if lacking and (len(keys) == 1 or len(lacking) == len(prompts.records)):
            known = ", ".join(sorted(lacking[0].metadata)) or "none"
            raise ConfigError(
                f"evaluation.group_by is {key!r}, but prompt {lacking[0].id} has no such metadata (it has: {known})"
            )
