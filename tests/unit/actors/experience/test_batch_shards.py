"""A group's parts come back in the order they were asked for, and several teachers as their mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.experience.batch_shards import GroupRefs, WeightedScores
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
STORE = {"group": GROUP, "a": scores(0.5, "a"), "b": scores(0.1, "b"), "start": scores(0.7, "start")}


@pytest.mark.parametrize("reference", [None, "start"])
@pytest.mark.parametrize(
    ("weights", "teacher", "probability"),
    [({}, None, None), ({"a": 2.0}, "a", 0.5), ({"a": 1.0, "b": 3.0}, "0.25 a + 0.75 b", 0.2)],
)
def test_every_score_lands_in_its_place(
    weights: dict[str, float], teacher: str | None, probability: float | None, reference: str | None
) -> None:
    of_teachers = tuple(WeightedScores(weight=weight, scores=name) for name, weight in weights.items())
    refs = GroupRefs(group="group", verdicts=VERDICTS, teacher_scores=of_teachers, reference_scores=reference)
    scored = refs.scored_group([STORE[ref] for ref in refs.all_refs])
    assert scored.group.uid == scored.verdicts.uid == "g"
    if teacher is None:
        assert scored.teacher_scores is None
    else:
        assert scored.teacher_scores is not None
        assert scored.teacher_scores.teacher == teacher
        np.testing.assert_allclose(np.exp(scored.teacher_scores.logprobs), probability, rtol=1e-6)
    assert (scored.reference_scores.teacher if scored.reference_scores else None) == reference


def test_scores_of_another_group_are_refused() -> None:
    refs = GroupRefs(group="group", verdicts=VERDICTS, teacher_scores=(WeightedScores(weight=1.0, scores="x"),))
    with pytest.raises(ContractError, match="TeacherScores belongs to h attempt 0, but the group is g"):
        refs.scored_group([GROUP, scores(0.5, "a", uid="h")])
