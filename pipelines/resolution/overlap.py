"""Evaluation prompts that are also training prompts: found by their text, then refused or left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pipelines.resolution.prompts import EncodedPrompts
from rlad.errors import PlanError

_LOG = logging.getLogger(__name__)
_SHOWN = 3

Treatment = Literal["refuse", "drop_training", "drop_evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DisjointPrompts:
    """Training and evaluation prompts without common ones.

    Attributes:
        training: Training prompts.
        evaluation: Evaluation prompts.
        training_dropped: Number of training prompts left out because they are evaluation prompts.
        evaluation_dropped: Number of evaluation prompts left out because they are training prompts.
    """

    training: EncodedPrompts
    evaluation: EncodedPrompts
    training_dropped: int = 0
    evaluation_dropped: int = 0


def disjoint(training: EncodedPrompts, evaluation: EncodedPrompts, treatment: Treatment) -> DisjointPrompts:
    """Refuse or leave out the prompts that occur in training and evaluation. Left-out prompts are logged.

    Two prompts are the same if their tokens are equal, or their questions but for whitespace, system messages and the
    `prompt_suffix` of their sources. Ids do not matter.

    Raises:
        PlanError: There are common prompts and `treatment` is `refuse`, or none would be left.
    """
    in_training = common(training, evaluation)
    in_evaluation = common(evaluation, training)
    if not in_training:
        return DisjointPrompts(training=training, evaluation=evaluation)
    examples = ", ".join(evaluation.records[index].id for index in in_evaluation[:_SHOWN])
    if treatment == "refuse":
        raise PlanError(
            f"{len(in_evaluation)} of {len(evaluation.records)} evaluation prompts are also training prompts, for "
            f"example {examples}: use different prompts for the evaluation, or set evaluation.overlap to drop_training "
            "or drop_evaluation, which leaves them out"
        )
    drops_training = treatment == "drop_training"
    kind, prompts, dropped = (
        ("training", training, in_training) if drops_training else ("evaluation", evaluation, in_evaluation)
    )
    if len(dropped) == len(prompts.records):
        raise PlanError(
            f"all {len(dropped)} {kind} prompts occur in both training and evaluation, so evaluation.overlap: "
            f"{treatment} leaves none; use different prompts for the evaluation"
        )
    _LOG.warning(
        "prompts left out: in_training_and_evaluation=%d kept=%d of=%s examples=%s",
        len(dropped),
        len(prompts.records) - len(dropped),
        kind,
        examples,
    )
    gone = set(dropped)
    left = prompts.select([index for index in range(len(prompts.records)) if index not in gone])
    if drops_training:
        return DisjointPrompts(training=left, evaluation=evaluation, training_dropped=len(dropped))
    return DisjointPrompts(training=training, evaluation=left, evaluation_dropped=len(dropped))


def common(prompts: EncodedPrompts, others: EncodedPrompts) -> list[int]:
    """Return the indices of the prompts that are also in `others`."""
    tokens, questions = {ids.tobytes() for ids in others.token_ids}, set(others.question_keys)
    return [
        index
        for index, (ids, key) in enumerate(zip(prompts.token_ids, prompts.question_keys, strict=True))
        if ids.tobytes() in tokens or key in questions
    ]
