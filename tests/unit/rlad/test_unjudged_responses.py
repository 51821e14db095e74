"""Responses whose verification timed out or failed are in no update and in no baseline."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from actors.experience.batch_shards import ShardPolicy, StepShards
from actors.experience.group import ExperienceGroup
from actors.messages import GroupSummary
from rlad.advantages import AdvantageEstimator, group_advantages
from rlad.contracts import Outcome, ScoredGroup
from rlad.errors import ContractError
from rlad.evaluation.accuracy import PromptResult, summarise
from rlad.objectives import GrpoConfig
from rlad.packing import BatchRules, LossNormalizer, build_training_batch
from rlad.testing.records import make_group, make_verdicts

C, W, T, E = Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.ERROR
RESPONSES = [[4, 5], [6], [7, 8, 9], [10, 11]]


def scored(outcomes: list[Outcome]) -> ScoredGroup:
    group = make_group(RESPONSES, prompt=[1, 2])
    verdicts = make_verdicts(group, [float(outcome is C) for outcome in outcomes], outcomes=outcomes)
    return ScoredGroup(group=group, verdicts=verdicts, rewards=verdicts.rewards, teacher_scores=None)


def experience(outcomes: list[Outcome], uid: str = "g") -> ExperienceGroup:
    verdicts = replace(scored(outcomes).verdicts, uid=uid)
    lengths = tuple(map(len, RESPONSES))
    summary = GroupSummary(
        uid=uid,
        attempt=0,
        prompt_tokens=2,
        response_lengths=lengths,
        is_truncated=(False,) * 4,
        tokens_by_version={0: sum(lengths)},
    )
    return ExperienceGroup(summary=summary, columns=uid, verdicts=verdicts, rewards=tuple(verdicts.rewards.tolist()))


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Rewards 1, 0, 0 of the three judged: mean 1/3, population deviation sqrt(2)/3.
        ("group_std", [math.sqrt(2), -1 / math.sqrt(2), 0, -1 / math.sqrt(2)]),
        ("group_mean_only", [2 / 3, -1 / 3, 0, -1 / 3]),
        # The mean of the two others: 0 for the first, 1/2 for the rest.
        ("rloo", [1, -1 / 2, 0, -1 / 2]),
    ],
)
def test_one_error_in_a_group_of_four_by_hand(estimator: AdvantageEstimator, expected: list[float]) -> None:
    judged = [True, True, False, True]
    for reward in (0.0, 1.0, -7.0):  # the value of a failed verifier does not matter
        assert group_advantages([1, 0, reward, 0], estimator, is_judged=judged).tolist() == pytest.approx(expected)


def test_a_group_with_at_most_one_judged_response_has_no_advantage() -> None:
    assert group_advantages([0, 0, 0], is_judged=[False] * 3).tolist() == [0, 0, 0]
    assert group_advantages([1, 0, 0], is_judged=[True, False, False]).tolist() == [0, 0, 0]
    with pytest.raises(ContractError, match="expected is_judged for 2 rewards"):
        group_advantages([1, 0], is_judged=[True])


def test_packed_row_holds_the_judged_responses_with_their_baseline() -> None:
    sequences = [("test:0:0", index) for index in range(4)]
    batch, counts = build_training_batch(
        {"test:0:0": scored([C, W, E, W])},
        sequences,
        normalizer=LossNormalizer(num_responses=4),
        rules=BatchRules(objective=GrpoConfig()),
    )
    assert batch.sequence_offsets.tolist() == [0, 4, 7, 11]  # prompt of 2 with responses of 2, 1 and 2
    high, low = math.sqrt(2), -1 / math.sqrt(2)
    assert batch.advantages.tolist() == pytest.approx([high] * 4 + [low] * 7)
    # 4 responses in the denominator, whether or not one is left out.
    assert batch.weights.tolist() == [0, 1 / 8, 1 / 8, 0, 0, 1 / 4, 0, 0, 1 / 8, 1 / 8, 0]
    assert (counts.responses, counts.response_tokens, counts.trained_tokens) == (4, 8, 5)


def test_packed_row_without_a_judged_response_has_no_weight() -> None:
    batch, counts = build_training_batch(
        {"test:0:0": scored([T, E, E, T])},
        [("test:0:0", 0)],
        normalizer=LossNormalizer(num_responses=4),
        rules=BatchRules(objective=GrpoConfig()),
    )
    assert not np.any(batch.weights)
    assert counts.trained_tokens == 0


@pytest.mark.parametrize(
    ("outcomes", "skip_equal", "expected"),
    [
        ([C, W, E, W], True, [0, 1, 3]),
        ([W, W, E, T], True, []),  # the judged rewards are equal
        ([W, W, E, T], False, [0, 1]),
        ([E, E, T, E], True, []),
        ([E, E, T, E], False, []),
    ],
)
def test_shards_hold_judged_responses(outcomes: list[Outcome], skip_equal: bool, expected: list[int]) -> None:
    policy = ShardPolicy(ranks=1, token_budget=100, skip_equal_rewards=skip_equal, skip_truncated=False)
    assert policy.trainable_responses(experience(outcomes)) == expected
    counted = sum(len(RESPONSES[index]) for index, outcome in enumerate(outcomes) if outcome in (C, W))
    assert policy.counted_tokens(experience(outcomes)) == counted


def test_update_of_groups_without_a_verdict_still_steps() -> None:
    policy = ShardPolicy(ranks=2, token_budget=100, skip_equal_rewards=True, skip_truncated=False)
    shards = StepShards(1, [["a", "b"]], 4, policy)
    for uid in ("a", "b"):
        shards.add(experience([E] * 4, uid))
    for rank in range(2):
        shard = shards.shard(rank, 0)
        assert shard is not None
        assert (shard.micro_batches, shard.ends_step, shard.normalizer.num_responses) == ([[]], True, 8)


def prompt(name: str, rewards: tuple[float, ...], judged: tuple[bool, ...]) -> PromptResult:
    return PromptResult(
        prompt_id=name,
        groups=("all",),
        rewards=rewards,
        response_tokens=(5,) * len(rewards),
        num_truncated=0,
        answers=("1",) * len(rewards),
        is_judged=judged,
    )


def test_accuracy_has_judged_responses_in_its_denominator() -> None:
    summary = summarise(
        [
            prompt("a", (1, 0, 0, 0), (True, True, False, False)),  # 1 of 2
            prompt("b", (1, 1, 1, 0), (True, True, True, True)),  # 3 of 4
            prompt("c", (0, 0, 0, 0), (False, False, False, False)),  # no verdict
        ]
    )
    row = summary.overall
    assert (row.mean, row.prompts, row.samples, row.failed) == ((1 / 2 + 3 / 4) / 2, 2, 4, 6)
    # pass@2: all two judged of `a`; 1 - C(1, 2) / C(4, 2) of `b`.
    assert row.pass_at[2].mean == 1.0
    assert row.pass_at[1].mean == row.mean
    assert summary.prompts == {"a": 0.5, "b": 0.75}
    assert summary.unjudged == ("c",)
    assert type(summary).from_dict(summary.as_dict()) == summary
    with pytest.raises(ContractError, match="timed out or failed on all 1 prompts"):
        summarise([prompt("c", (0.0,), (False,))])
