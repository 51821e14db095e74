"""Tests of the record builders."""

from __future__ import annotations

import pytest

from rlad.contracts import FinishReason, Outcome
from rlad.errors import ContractError
from rlad.testing import make_group, make_scored_group, make_teacher_scores, make_verdicts


def test_group_holds_the_responses_end_to_end() -> None:
    group = make_group([[4, 5], [], [6]], prompt=[7], behaviour_logprobs=[-1, -2, -3], policy_version=2, truncated=[1])
    assert group.response_ids.tolist() == [4, 5, 6]
    assert group.response_offsets.tolist() == [0, 2, 2, 3]
    assert group.prompt_ids.tolist() == [7]
    assert group.behaviour_logprobs.tolist() == [-1, -2, -3]
    assert group.policy_versions.tolist() == [2, 2, 2]
    assert group.finish_reasons.tolist() == [FinishReason.STOP, FinishReason.LENGTH, FinishReason.STOP]


def test_verdict_is_correct_where_the_reward_is_positive() -> None:
    verdicts = make_verdicts(make_group([[4], [5]]), [0.5, 0])
    assert verdicts.rewards.tolist() == [0.5, 0]
    assert verdicts.outcomes.tolist() == [Outcome.CORRECT, Outcome.WRONG]


def test_outcomes_can_be_chosen() -> None:
    verdicts = make_verdicts(make_group([[4], [5]]), 0.0, outcomes=[Outcome.TIMEOUT, Outcome.ERROR])
    assert verdicts.outcomes.tolist() == [Outcome.TIMEOUT, Outcome.ERROR]


def test_verdicts_and_scores_name_their_group() -> None:
    group = make_group([[4], [5, 6]], uid="d:1:7", attempt=3)
    verdicts, scores = make_verdicts(group), make_teacher_scores(group, -0.5)
    assert (verdicts.uid, verdicts.attempt) == (scores.uid, scores.attempt) == ("d:1:7", 3)
    assert scores.logprobs.tolist() == [-0.5, -0.5, -0.5]


def test_scored_group_may_lack_a_teacher() -> None:
    assert make_scored_group([[4]], teacher_logprobs=None).teacher_scores is None
    scored = make_scored_group([[4, 5]], teacher_logprobs=[-0.5, -0.25])
    assert scored.teacher_scores is not None
    assert scored.teacher_scores.logprobs.tolist() == [-0.5, -0.25]


def test_contradicting_arguments_are_refused_by_the_records_themselves() -> None:
    with pytest.raises(ContractError, match="behaviour_logprobs must have 2 entries, got 1"):
        make_group([[4, 5]], behaviour_logprobs=[-1.0])
    with pytest.raises(ContractError, match="must have 2 entries, got 1"):
        make_scored_group([[4]], rewards=[1, 0])
