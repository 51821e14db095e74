"""Mixture of teachers, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlad.contracts import TeacherScores
from rlad.errors import ContractError
from rlad.teacher.mixture import mix_teacher_scores


def scores(*probabilities: float, teacher: str = "a", uid: str = "g", attempt: int = 0) -> TeacherScores:
    logprobs = np.array([math.log(p) if p > 0 else p for p in probabilities], np.float32)
    return TeacherScores(uid=uid, attempt=attempt, teacher=teacher, logprobs=logprobs)


def test_probabilities_are_averaged_with_normalised_weights() -> None:
    mixed = mix_teacher_scores([(1.0, scores(0.5, 0.1)), (3.0, scores(0.1, 0.9, teacher="b"))])
    # 1/4 of 0.5 and 3/4 of 0.1; 1/4 of 0.1 and 3/4 of 0.9. The mean of the logarithms would give 0.1495 and 0.5196.
    np.testing.assert_allclose(np.exp(mixed.logprobs), [0.2, 0.7], rtol=1e-6)
    assert (mixed.uid, mixed.attempt, mixed.teacher) == ("g", 0, "0.25 a + 0.75 b")
    assert mixed.logprobs.dtype == np.float32


def test_scaling_all_weights_changes_nothing() -> None:
    first, second = scores(0.5, 0.25), scores(0.125, 1.0, teacher="b")
    np.testing.assert_allclose(
        mix_teacher_scores([(1e-3, first), (2e-3, second)]).logprobs,
        mix_teacher_scores([(10.0, first), (20.0, second)]).logprobs,
        rtol=1e-6,
    )


def test_mixture_of_equal_teachers_is_exact_for_tiny_probabilities() -> None:
    deep = TeacherScores(uid="g", attempt=0, teacher="a", logprobs=np.array([-2000.0, -1e-8], np.float32))
    mixed = mix_teacher_scores([(0.3, deep), (0.2, deep), (0.5, deep)])
    np.testing.assert_allclose(mixed.logprobs, deep.logprobs, rtol=1e-6, atol=1e-12)


def test_token_missing_at_any_teacher_is_missing_in_the_mixture() -> None:
    whole, holes = scores(0.5, 0.5, 0.5, 0.5), scores(0.5, math.nan, -math.inf, math.inf, teacher="b")
    for order in ((whole, holes), (holes, whole)):
        mixed = mix_teacher_scores([(1.0, part) for part in order])
        assert np.isnan(mixed.logprobs).tolist() == [False, True, True, True]
        assert mixed.logprobs[0] == pytest.approx(math.log(0.5))


def test_scores_of_a_single_teacher_are_unchanged() -> None:
    ids, logprobs = np.zeros(1, np.int32), np.zeros(1, np.float32)
    alone = TeacherScores(
        uid="g",
        attempt=0,
        teacher="a",
        logprobs=logprobs,
        support_size=1,
        support_ids=ids,
        support_logprobs=logprobs,
        tail_logprobs=logprobs,
    )
    assert mix_teacher_scores([(0.7, alone)]) is alone
    with pytest.raises(ContractError, match="scores with supports, which cannot be mixed"):
        mix_teacher_scores([(0.7, alone), (0.3, scores(0.5))])


@pytest.mark.parametrize("other", [scores(0.5, uid="h"), scores(0.5, attempt=1), scores(0.5, 0.5)])
def test_scores_of_different_groups_are_refused(other: TeacherScores) -> None:
    with pytest.raises(ContractError, match="expected scores of one group"):
        mix_teacher_scores([(1.0, scores(0.5)), (1.0, other)])


@pytest.mark.parametrize("weights", [(), (0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_invalid_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ContractError, match="expected at least one weight, all positive and finite"):
        mix_teacher_scores([(weight, scores(0.5)) for weight in weights])
