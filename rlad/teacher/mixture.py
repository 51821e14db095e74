"""Mixture of several teachers' distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlad.contracts import TeacherScores
from rlad.errors import ContractError


def mix_teacher_scores(scores: Sequence[tuple[float, TeacherScores]]) -> TeacherScores:
    """Return the scores under the mixture of several teachers.

    The score of a sampled token is `log sum_k w_k p_k`, with weights normalised to 1, summed in float64. A token whose
    score is missing, NaN or infinite at any teacher is missing (NaN) in the mixture: omitting only that teacher would
    score the token under another mixture.

    Args:
        scores: Weight of each teacher and its scores of the same group. A single teacher's scores are returned
            unchanged.

    Raises:
        ContractError: There is no teacher, the scores belong to different groups, a weight is not positive and finite,
            or scores have supports. Supports cannot be mixed: the most likely tokens of the mixture need not be among
            those of each teacher.
    """
    if not scores or any(not (weight > 0 and math.isfinite(weight)) for weight, _ in scores):
        raise ContractError(
            "mix_teacher_scores: expected at least one weight, all positive and finite; got "
            f"{[weight for weight, _ in scores]}"
        )
    first = scores[0][1]
    if len(scores) == 1:
        return first
    names = {(part.uid, part.attempt, len(part.logprobs)) for _, part in scores}
    if len(names) > 1:
        raise ContractError(
            f"mix_teacher_scores: expected scores of one group; got (uid, attempt, tokens) {sorted(names)}"
        )
    if any(part.support_size for _, part in scores):
        raise ContractError(
            f"mix_teacher_scores: group {first.uid} has scores with supports, which cannot be mixed: use one teacher "
            "or an objective of sampled tokens"
        )
    total = math.fsum(weight for weight, _ in scores)
    logprobs = np.stack([part.logprobs.astype(np.float64) for _, part in scores])
    weighted = logprobs + np.log([[weight / total] for weight, _ in scores])
    is_known = np.all(np.isfinite(logprobs), axis=0)
    mixed = np.full(len(first.logprobs), np.nan, np.float32)
    mixed[is_known] = np.logaddexp.reduce(weighted[:, is_known], axis=0)
    mixture = " + ".join(f"{weight / total:g} {part.teacher}" for weight, part in scores)
    return TeacherScores(uid=first.uid, attempt=first.attempt, teacher=mixture, logprobs=mixed)
