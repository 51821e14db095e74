"""An experience group assembles its columns, and several teachers become their mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.experience.group import ExperienceGroup, WeightedScores
from actors.messages import GroupSummary
from rlad.contracts import Columns, RolloutGroup, TeacherScores, Verdicts
from rlad.errors import ContractError


def scores(probability: float, teacher: str, uid: str = "g") -> Columns:
    logprobs = np.full(3, math.log(probability), np.float32)
    return TeacherScores(uid=uid, attempt=0, teacher=teacher, logprobs=logprobs).to_columns()


GROUP = RolloutGroup(
    uid="g",
    attempt=0,
    prompt_id="p",
    task="any",
    answer="",
    temperature=1.0,
    prompt_ids=np.array([5], np.int32),
    response_ids=np.array([1, 2, 3], np.int32),
    response_offsets=np.array([0, 1, 3], np.int64),
    behaviour_logprobs=np.zeros(3, np.float32),
    policy_versions=np.zeros(3, np.int32),
    finish_reasons=np.zeros(2, np.uint8),
).to_columns()
VERDICTS = Verdicts(
    uid="g",
    attempt=0,
    rewards=np.zeros(2, np.float32),
    outcomes=np.zeros(2, np.uint8),
    elapsed_s=np.zeros(2, np.float32),
)
SUMMARY = GroupSummary.of(RolloutGroup.from_columns(GROUP))
STORE = {"group": GROUP, "a": scores(0.5, "a"), "b": scores(0.1, "b"), "start": scores(0.7, "start")}


@pytest.mark.parametrize("reference", [None, "start"])
@pytest.mark.parametrize(
    ("weights", "teacher", "probability"),
    [({}, None, None), ({"a": 2.0}, "a", 0.5), ({"a": 1.0, "b": 3.0}, "0.25 a + 0.75 b", 0.2)],
)
def test_scores_are_assembled_in_the_order_of_the_references(
    weights: dict[str, float], teacher: str | None, probability: float | None, reference: str | None
) -> None:
    teacher_scores = tuple(WeightedScores(weight=weight, scores=name) for name, weight in weights.items())
    group = ExperienceGroup(
        summary=SUMMARY,
        columns="group",
        verdicts=VERDICTS,
        rewards=(0.25, -1.0),
        teacher_scores=teacher_scores,
        reference_scores=reference,
    )
    scored = group.scored_group([STORE[ref] for ref in group.all_refs])
    assert scored.group.uid == scored.verdicts.uid == "g"
    assert scored.rewards.tolist() == [0.25, -1.0]
    assert scored.rewards.dtype == np.float32
    if teacher is None:
        assert scored.teacher_scores is None
    else:
        assert scored.teacher_scores is not None
        assert scored.teacher_scores.teacher == teacher
        np.testing.assert_allclose(np.exp(scored.teacher_scores.logprobs), probability, rtol=1e-6)
    assert (scored.reference_scores.teacher if scored.reference_scores else None) == reference


def test_scores_of_another_group_are_refused() -> None:
    group = ExperienceGroup(
        summary=SUMMARY,
        columns="group",
        verdicts=VERDICTS,
        rewards=(0.0, 0.0),
        teacher_scores=(WeightedScores(weight=1.0, scores="x"),),
    )
    with pytest.raises(ContractError, match="TeacherScores belongs to h attempt 0, but the group is g"):
        group.scored_group([GROUP, scores(0.5, "a", uid="h")])


def test_a_summary_counts_tokens_by_policy_version_and_truncated_responses() -> None:
    group = RolloutGroup.from_columns(
        {**GROUP, "policy_versions": np.array([4, 3, 4], np.int32), "finish_reasons": np.array([0, 1], np.uint8)}
    )
    summary = GroupSummary.of(group)
    assert summary.response_lengths == (1, 2)
    assert summary.is_truncated == (False, True)
    assert summary.tokens_by_version == {3: 1, 4: 2}
    assert (summary.num_tokens, summary.num_truncated, summary.oldest_version, summary.prompt_tokens) == (3, 1, 3, 1)
