"""Packed rows: their columns, weights, counts and slices, and the inputs that are refused."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest

from rlad.contracts import ScoredGroup, TeacherScores
from rlad.errors import ContractError
from rlad.objectives import EopdConfig, GrpoConfig, KdrlConfig, TrrdConfig
from rlad.packing import BatchCounts, BatchRules, LossNormalizer, build_training_batch, dummy_batch
from rlad.sequence_parallel import head_problem, padded_row, slice_of
from rlad.training_batch import TrainingBatch

from .scored_groups import SUPPORT, scored_group


def test_public_signatures_are_pinned() -> None:
    assert list(inspect.signature(build_training_batch).parameters) == ["groups", "sequences", "normalizer", "rules"]
    assert list(inspect.signature(dummy_batch).parameters) == ["objective", "support_size", "output_layer"]


def rules(uses_teacher: bool, truncated: Literal["keep", "mask"]) -> BatchRules:
    return BatchRules(objective=TrrdConfig() if uses_teacher else GrpoConfig(), truncated=truncated)


def test_row_by_hand() -> None:
    """Prompt of 2 tokens, responses of 2 and 1. A prompt's last position predicts the first response token."""
    scored = scored_group("g", [2, 0, 1], prompt_tokens=2, rewards=[1, 0, 0])
    group, teacher = scored.group, scored.teacher_scores
    (p0, p1), (r0, r1, r2) = group.prompt_ids.tolist(), group.response_ids.tolist()
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 2), ("g", 0)], normalizer=LossNormalizer(num_responses=4), rules=rules(True, "keep")
    )
    assert batch.token_ids.tolist() == [p0, p1, r2, p0, p1, r0, r1]
    assert batch.target_ids.tolist() == [p1, r2, 0, p1, r0, r1, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.sequence_offsets.tolist() == [0, 3, 7]
    b0, b1, b2 = group.behaviour_logprobs.tolist()
    assert batch.behaviour_logprobs.tolist() == [0, b2, 0, 0, b0, b1, 0]
    t0, t1, t2 = teacher.logprobs.tolist()
    assert batch.teacher_logprobs.tolist() == [0, t2, 0, 0, t0, t1, 0]
    assert batch.weights.tolist() == [0, 1 / 4, 0, 0, 1 / 8, 1 / 8, 0]
    best, other = (pytest.approx(value) for value in (math.sqrt(2), -math.sqrt(0.5)))
    assert batch.advantages.tolist() == [other] * 3 + [best] * 4
    assert counts == BatchCounts(responses=2, response_tokens=3, trained_tokens=3)


def test_missing_log_probabilities_are_masked_and_leave_the_denominator() -> None:
    scored = scored_group("g", [4, 2], prompt_tokens=1, rewards=[1, 0])
    scored.teacher_scores.logprobs[[0, 2]] = [np.nan, -np.inf]
    scored.group.behaviour_logprobs[3] = -np.inf
    scored.teacher_scores.logprobs[4:] = np.nan
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0), ("g", 1)], normalizer=LossNormalizer(num_responses=2), rules=rules(True, "keep")
    )
    assert batch.weights.tolist() == [0, 0.5, 0, 0, 0]  # the second response has no valid token and is left out
    assert counts == BatchCounts(
        responses=2, response_tokens=6, trained_tokens=1, missing_teacher_tokens=4, missing_behaviour_tokens=1
    )
    without, counts = build_training_batch(
        {"g": scored}, [("g", 0)], normalizer=LossNormalizer(num_responses=2), rules=rules(False, "keep")
    )
    assert without.teacher_logprobs is None
    assert without.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0, 0])
    assert counts == BatchCounts(responses=1, response_tokens=4, trained_tokens=3, missing_behaviour_tokens=1)


@pytest.mark.parametrize(("truncated", "weights"), [("keep", [0.25, 0.25, 0, 0.5, 0]), ("mask", [0.5, 0])])
def test_truncated_responses_are_counted_and_kept_or_masked(
    truncated: Literal["keep", "mask"], weights: list[float]
) -> None:
    scored = scored_group("g", [2, 1], prompt_tokens=1, truncated=[0])
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0), ("g", 1)], normalizer=LossNormalizer(num_responses=2), rules=rules(True, truncated)
    )
    assert batch.weights.tolist() == weights
    trained = 3 if truncated == "keep" else 1
    assert counts == BatchCounts(responses=2, truncated_responses=1, response_tokens=3, trained_tokens=trained)


def test_counts_add() -> None:
    one = BatchCounts(
        responses=1,
        truncated_responses=2,
        response_tokens=3,
        trained_tokens=4,
        missing_teacher_tokens=5,
        missing_behaviour_tokens=6,
    )
    ten = BatchCounts(
        responses=10,
        truncated_responses=20,
        response_tokens=30,
        trained_tokens=40,
        missing_teacher_tokens=50,
        missing_behaviour_tokens=60,
    )
    assert one + ten == BatchCounts(
        responses=11,
        truncated_responses=22,
        response_tokens=33,
        trained_tokens=44,
        missing_teacher_tokens=55,
        missing_behaviour_tokens=66,
    )


@pytest.mark.parametrize("uses_teacher", [True, False])
def test_row_without_valid_tokens_is_the_dummy_batch(uses_teacher: bool) -> None:
    groups = {"g": scored_group("g", [0, 3], truncated=[1])}
    for sequences in ([], [("g", 0), ("g", 1)]):
        batch, _ = build_training_batch(
            groups, sequences, normalizer=LossNormalizer(num_responses=2), rules=rules(uses_teacher, "mask")
        )
        assert (batch.token_ids.tolist(), batch.weights.tolist()) == ([0], [0.0])
        assert (batch.teacher_logprobs is not None) == uses_teacher


@pytest.mark.parametrize(
    ("sequences", "num_responses", "message"),
    [
        ([("other", 0)], 2, "group other, not among the 1 groups passed"),
        ([("g", 2)], 2, "group g has 2 responses; got response index 2"),
        ([("g", -1)], 2, "got response index -1"),
        ([("g", 0), ("g", 1)], 1, "at most normalizer.num_responses = 1 sequences, .*; got 2"),
        ([("g", 0)], 2, "group g has no teacher scores"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(
    sequences: list[tuple[str, int]], num_responses: int, message: str
) -> None:
    groups = {"g": scored_group("g", [2, 1], has_teacher="teacher" not in message)}
    with pytest.raises(ContractError, match=message):
        build_training_batch(
            groups, sequences, normalizer=LossNormalizer(num_responses=num_responses), rules=rules(True, "keep")
        )


@pytest.mark.parametrize(
    ("aggregation", "weight"),
    [({"aggregation": "token_mean"}, 1 / 40), ({"aggregation": "fixed_length", "fixed_length": 5}, 1 / (4 * 5))],
    ids=str,
)
def test_weights_of_the_other_aggregations(aggregation: dict[str, Any], weight: float) -> None:
    scored = scored_group("g", [3, 1], prompt_tokens=1)
    batch, _ = build_training_batch(
        {"g": scored},
        [("g", 0), ("g", 1)],
        normalizer=LossNormalizer(num_responses=4, num_tokens=40),
        rules=BatchRules(objective=GrpoConfig(**aggregation)),
    )
    assert batch.weights.tolist() == pytest.approx([weight, weight, weight, 0, weight, 0])


def test_token_mean_without_the_number_of_tokens_is_refused() -> None:
    rules = BatchRules(objective=GrpoConfig(aggregation="token_mean"))
    with pytest.raises(ContractError, match="needs the number of tokens of the whole step"):
        build_training_batch(
            {"g": scored_group("g", [3, 1])}, [("g", 0)], normalizer=LossNormalizer(num_responses=4), rules=rules
        )


def test_support_and_reference_are_placed_where_the_token_is_predicted() -> None:
    scored = scored_group("g", [2], prompt_tokens=2, rewards=[1])
    teacher, reference = scored.teacher_scores, scored.reference_scores
    teacher.support_logprobs[SUPPORT] = np.nan  # makes the second token invalid
    objective = KdrlConfig(estimator="topk", top_k=SUPPORT, reference_kl=0.1, imitate="response")
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0)], normalizer=LossNormalizer(num_responses=1), rules=BatchRules(objective=objective)
    )
    assert batch.support_size == SUPPORT
    assert batch.support_ids.reshape(-1, SUPPORT)[1].tolist() == teacher.support_ids[:SUPPORT].tolist()
    assert batch.teacher_support_logprobs.reshape(-1, SUPPORT).tolist() == [
        [0] * 3,
        teacher.support_logprobs[:SUPPORT].tolist(),
        [0] * 3,
        [0] * 3,
    ]
    assert batch.teacher_tail_logprobs.tolist() == [0, teacher.tail_logprobs[0], 0, 0]
    assert batch.reference_logprobs.tolist() == [0, reference.logprobs[0], 0, 0]
    assert batch.weights.tolist() == [0, 1, 0, 0]
    assert batch.is_imitated.tolist() == [False] * 4  # the response is correct
    assert counts == BatchCounts(responses=1, response_tokens=2, trained_tokens=1, missing_teacher_tokens=1)


@pytest.mark.parametrize(("tail", "trains"), [(np.nan, False), (np.inf, False), (-np.inf, True), (-3.0, True)])
def test_tail_of_nan_or_plus_infinity_is_missing_and_minus_infinity_is_a_score(tail: float, trains: bool) -> None:
    scored = scored_group("g", [2], prompt_tokens=1, rewards=[1])
    scored.teacher_scores.tail_logprobs[0] = tail
    batch, counts = build_training_batch(
        {"g": scored},
        [("g", 0)],
        normalizer=LossNormalizer(num_responses=1),
        rules=BatchRules(objective=KdrlConfig(estimator="topk", top_k=SUPPORT)),
    )
    assert batch.weights.tolist() == ([0.5, 0.5, 0] if trains else [0, 1, 0])
    assert (counts.trained_tokens, counts.missing_teacher_tokens) == ((2, 0) if trains else (1, 1))


def test_missing_scores_are_counted_where_the_behaviour_is_missing_too() -> None:
    """Token 0 lacks both, token 1 the teacher, token 2 the reference: each is counted in each of its columns."""
    scored = scored_group("g", [4], prompt_tokens=1, rewards=[1])
    scored.group.behaviour_logprobs[0] = np.nan
    scored.teacher_scores.logprobs[[0, 1]] = np.nan
    scored.reference_scores.logprobs[[0, 2]] = np.nan
    _, counts = build_training_batch(
        {"g": scored},
        [("g", 0)],
        normalizer=LossNormalizer(num_responses=1),
        rules=BatchRules(objective=TrrdConfig(reference_kl=0.1)),
    )
    assert counts == BatchCounts(
        responses=1,
        response_tokens=4,
        trained_tokens=1,
        missing_teacher_tokens=2,
        missing_reference_tokens=2,
        missing_behaviour_tokens=1,
    )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (GrpoConfig(reference_kl=0.1), "group g has no reference scores, but the objective uses the reference"),
        (
            KdrlConfig(estimator="topk", top_k=2),
            "the teacher scores of group g have no support, but the objective needs support 2",
        ),
    ],
)
def test_group_without_the_scores_that_the_objective_needs_is_refused(objective: Any, message: str) -> None:
    whole = scored_group("g", [2])
    plain = TeacherScores(uid="g", attempt=0, teacher="t", logprobs=whole.teacher_scores.logprobs)
    scored = ScoredGroup(group=whole.group, verdicts=whole.verdicts, rewards=whole.rewards, teacher_scores=plain)
    with pytest.raises(ContractError, match=message):
        build_training_batch(
            {"g": scored}, [("g", 0)], normalizer=LossNormalizer(num_responses=1), rules=BatchRules(objective=objective)
        )


def supported_row() -> TrainingBatch:
    """Two sequences of 4 and 3 positions, with all columns of a teacher's support."""
    scored = scored_group("g", [2, 1], prompt_tokens=2, rewards=[1, 0])
    rules = BatchRules(objective=EopdConfig(top_k=SUPPORT))
    normalizer = LossNormalizer(num_responses=2)
    return build_training_batch({"g": scored}, [("g", 0), ("g", 1)], normalizer=normalizer, rules=rules)[0]


def test_padding_is_a_sequence_of_weight_zero() -> None:
    batch, padded = supported_row(), padded_row(supported_row(), 4)
    assert padded.sequence_offsets.tolist() == [0, 4, 7, 8]
    assert padded.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert padded.weights.tolist() == [*batch.weights.tolist(), 0]
    for field in fields(batch):
        column, longer = getattr(batch, field.name), getattr(padded, field.name)
        if isinstance(column, np.ndarray):
            assert longer.dtype == column.dtype
            assert longer[: len(column)].tolist() == column.tolist()
        else:
            assert longer == column
    assert len(padded.support_ids) == 8 * SUPPORT


def test_row_of_a_fitting_length_is_not_padded() -> None:
    batch = supported_row()
    assert padded_row(batch, 7) is batch
    assert padded_row(batch, 1) is batch


def test_dummy_row_has_a_position_for_each_rank() -> None:
    padded = padded_row(dummy_batch(GrpoConfig()), 4)
    assert (padded.sequence_offsets.tolist(), padded.position_ids.tolist()) == ([0, 1, 4], [0, 0, 1, 2])
    assert padded.weights.tolist() == [0] * 4


def test_slices_cover_the_row_in_the_order_of_the_ranks() -> None:
    assert [slice_of(12, rank=rank, ranks=3) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]


@pytest.mark.parametrize(
    ("ranks", "heads", "kv_heads", "fits"),
    [
        (1, 3, 1, True),
        (4, 32, 8, True),
        (16, 32, 8, True),  # two ranks share a key-value head
        (12, 24, 8, False),  # 12 ranks and 8 key-value heads: neither divides the other
        (3, 32, 8, False),
        (64, 32, 8, False),
        (6, 12, 2, True),
        (2, 14, 1, True),
    ],
)
def test_heads_are_divided_among_ranks(ranks: int, heads: int, kv_heads: int, fits: bool) -> None:
    assert (head_problem(ranks, heads=heads, kv_heads=kv_heads) is None) == fits


def test_refusal_names_the_possible_numbers() -> None:
    assert head_problem(5, heads=12, kv_heads=4) == (
        "learner.sequence_parallel must divide the student's 12 attention heads, and divide its 4 key-value heads or "
        "be a multiple of them; got 5. Set it to one of 1, 2, 4, 12"
    )
