"""Several teachers as one: the mixture of their distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlad.contracts import TeacherScores
from rlad.errors import ContractError


def mix_teacher_scores(scores: Sequence[tuple[float, TeacherScores]]) -> TeacherScores:
    """The scores of a teacher that is the mixture of several: `log sum_k w_k p_k` of each sampled token, with the weights normalised to 1.

    A token whose score is missing, NaN or infinite at any teacher is missing (NaN) in the mixture: leaving that teacher out there would be another
    mixture. Summed in float64.

    Args:
        scores: each teacher's weight and its scores of one and the same group. A single one is returned as it is.

    Raises:
        ContractError: no teacher, scores of different groups, a weight that is not positive and finite, or supports, which are not mixed: the likeliest
            tokens of the mixture are not among those of each teacher.
    """
    if not scores or any(not (weight > 0 and math.isfinite(weight)) for weight, _ in scores):
        raise ContractError(
            f"mix_teacher_scores: weights must be positive and finite, at least one; got {[weight for weight, _ in scores]}"
        )
    first = scores[0][1]
    if len(scores) == 1:
        return first
    names = {(each.uid, each.attempt, len(each.logprobs)) for _, each in scores}
    if len(names) > 1:
        raise ContractError(
            f"mix_teacher_scores: expected scores of one group, got (uid, attempt, tokens) {sorted(names)}"
        )
    if any(each.support_size for _, each in scores):
        raise ContractError(
            f"mix_teacher_scores: group {first.uid} was scored with supports, which cannot be mixed: take one teacher, or sampled tokens"
        )
    total = math.fsum(weight for weight, _ in scores)
    logprobs = np.stack([each.logprobs.astype(np.float64) for _, each in scores])
    weighted = logprobs + np.log([[weight / total] for weight, _ in scores])
    is_known = np.all(np.isfinite(logprobs), axis=0)
    mixed = np.full(len(first.logprobs), np.nan, np.float32)
    mixed[is_known] = np.logaddexp.reduce(weighted[:, is_known], axis=0)
    mixture = " + ".join(f"{weight / total:g} {each.teacher}" for weight, each in scores)
    return TeacherScores(uid=first.uid, attempt=first.attempt, teacher=mixture, logprobs=mixed)
