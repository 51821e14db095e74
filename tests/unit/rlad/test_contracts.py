"""Scores that contradict themselves or their group are refused at construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlad.contracts import RolloutGroup, ScoredGroup, TeacherScores, Verdicts
from rlad.errors import ContractError

NUM_TOKENS, SUPPORT = 3, 2


def floats(size: int) -> np.ndarray:
    return -np.arange(1, size + 1, dtype=np.float32)


def support(**changes: Any) -> dict[str, Any]:
    columns = {
        "support_size": SUPPORT,
        "support_ids": np.arange(NUM_TOKENS * SUPPORT, dtype=np.int32),
        "support_logprobs": floats(NUM_TOKENS * SUPPORT),
        "tail_logprobs": np.full(NUM_TOKENS, -np.inf, np.float32),
    }
    return {**columns, **changes}


def scores(num_tokens: int = NUM_TOKENS, attempt: int = 0, **columns: Any) -> TeacherScores:
    return TeacherScores(uid="g", attempt=attempt, teacher="t", logprobs=floats(num_tokens), **columns)


def scored_group(**parts: Any) -> ScoredGroup:
    group = RolloutGroup(
        uid="g",
        attempt=0,
        prompt_id="p",
        task="any",
        answer="",
        temperature=1.0,
        prompt_ids=np.array([5], np.int32),
        response_ids=np.array([1, 2, 3], np.int32),
        response_offsets=np.array([0, 1, 3], np.int64),
        behaviour_logprobs=floats(3),
        policy_versions=np.zeros(3, np.int32),
        finish_reasons=np.zeros(2, np.uint8),
    )
    verdicts = Verdicts(uid="g", attempt=0, rewards=floats(2), outcomes=np.zeros(2, np.uint8), elapsed_s=floats(2))
    return ScoredGroup(
        **{"group": group, "verdicts": verdicts, "rewards": verdicts.rewards, "teacher_scores": None, **parts}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tail_logprobs": None},
            r"requires the columns .*tail_logprobs.*, got \['support_ids', 'support_logprobs'\]",
        ),
        (
            {"support_size": 0},
            r"support_size 0 requires the columns \[\], got \['support_ids', 'support_logprobs', 'tail_logprobs'\]",
        ),
        ({"support_size": -1}, "support_size must be at least 0, got -1"),
        ({"support_size": 3}, "support_ids must have 9 entries, got 6"),
        ({"support_ids": np.zeros(6, np.int64)}, "support_ids must be int32, got int64"),
        ({"support_ids": np.full(6, -1, np.int32)}, "negative token id"),
        ({"support_logprobs": floats(5)}, "support_logprobs must have 6 entries, got 5"),
        ({"tail_logprobs": floats(6)}, "tail_logprobs must have 3 entries, got 6"),
    ],
)
def test_inconsistent_support_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        scores(**support(**changes))


def test_scores_round_trip_through_columns_with_and_without_a_support() -> None:
    for sent in (scores(), scores(**support())):
        received = TeacherScores.from_columns(sent.to_columns())
        assert received.support_size == sent.support_size
        assert received.support_ids is sent.support_ids
        assert received.tail_logprobs is sent.tail_logprobs


def test_scores_must_match_the_group() -> None:
    assert scored_group().reference_scores is None
    both = scored_group(teacher_scores=scores(**support()), reference_scores=scores())
    assert both.reference_scores is not None
    with pytest.raises(ContractError, match="expected 3 reference scores, one per token; got 2"):
        scored_group(reference_scores=scores(2))
    with pytest.raises(ContractError, match="expected 3 teacher scores, one per token; got 2"):
        scored_group(teacher_scores=scores(2), reference_scores=scores())
    with pytest.raises(ContractError, match="TeacherScores belongs to g attempt 1, but the group is g attempt 0"):
        scored_group(reference_scores=scores(attempt=1))


def test_rewards_must_match_the_responses() -> None:
    with pytest.raises(ContractError, match="expected 2 rewards, one per response; got 3"):
        scored_group(rewards=floats(3))
