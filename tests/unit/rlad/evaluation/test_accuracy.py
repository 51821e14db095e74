"""Accuracy, pass@k and their intervals."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from rlad.errors import ContractError
from rlad.evaluation.accuracy import (
    EvaluationSummary,
    PromptResult,
    ks_up_to,
    majority_vote,
    mean_interval,
    pass_at_k,
    summarise,
)


def result(
    prompt_id: str,
    *groups: str,
    rewards: tuple[float, ...],
    truncated: int = 0,
    answers: tuple[str | None, ...] | None = None,
) -> PromptResult:
    tokens = (10,) * len(rewards)
    return PromptResult(
        prompt_id=prompt_id,
        groups=groups,
        rewards=rewards,
        response_tokens=tokens,
        num_truncated=truncated,
        answers=answers,
    )


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 1, 1), (5, 2, 3), (6, 3, 2), (4, 4, 4), (8, 1, 8)])
def test_pass_at_k_is_the_fraction_of_k_subsets_with_a_correct_sample(n: int, c: int, k: int) -> None:
    samples = [1] * c + [0] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_pass_at_k_with_k_above_the_number_of_samples_is_rejected() -> None:
    with pytest.raises(ContractError, match="not defined"):
        pass_at_k(4, 1, 5)


def test_interval_has_its_nominal_coverage() -> None:
    generator = np.random.default_rng(0)
    difficulties = generator.beta(2, 2, size=(400, 60))  # prompts differ in difficulty; four samples each
    covered = 0
    for row in difficulties:
        _, low, high = mean_interval(list(generator.binomial(4, row) / 4))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_interval_of_all_solved_prompts_is_not_degenerate() -> None:
    mean, low, high = mean_interval([1.0] * 20)
    assert (mean, high) == (1.0, pytest.approx(1.0))
    assert 0.8 < low < 0.9


def test_intervals_by_hand() -> None:
    # Mean 0.5, sample standard deviation 0.25 (0.2041 with ddof 0), standard error 0.25 / sqrt(3) = 0.144338.
    # Student's t with 2 degrees of freedom is 4.302653 at 97.5% (2.919986 at 95%); 0.1 as the scale keeps the ends
    # inside [0, 1].
    mean, low, high = mean_interval([0.475, 0.5, 0.525])
    assert (mean, high - mean, mean - low) == pytest.approx((0.5, 0.0621034, 0.0621034), abs=1e-6)
    # Wilson at z = 1.959964: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), here 1 and 3 of 4.
    assert mean_interval([1.0, 0.0, 0.0, 0.0]) == pytest.approx((0.25, 0.045587, 0.699358), abs=1e-5)
    assert mean_interval([1.0] * 4) == pytest.approx((1.0, 4 / (4 + 3.841459), 1.0), abs=1e-6)


def test_single_fractional_value_has_the_widest_interval() -> None:
    assert mean_interval([0.5]) == (0.5, 0.0, 1.0)


def test_partly_rewarded_response_is_not_solved() -> None:
    """Rewards of at most 0.5 count in the mean, and neither in pass@k nor as right votes."""
    overall = summarise(
        [result("a", rewards=(0.25, 0.5), answers=("x", "y")), result("b", rewards=(0.75, 0), answers=("x", "y"))]
    ).overall
    assert overall.mean == pytest.approx(0.375)
    assert {k: interval.mean for k, interval in overall.pass_at.items()} == {1: 0.25, 2: 0.5}
    assert overall.majority is not None
    assert overall.majority.mean == 0.25  # no chance for the first prompt, one of two winners for the second
    assert majority_vote(("x", "x"), (0.5, 0.25)) == 0.0
    assert majority_vote(("x", "x"), (0.51, 0.0)) == 0.5  # one right and one wrong vote


def test_summary_by_group_in_natural_order() -> None:
    summary = summarise(
        [
            result("a", "10", rewards=(1, 0)),
            result("b", "2", rewards=(1, 1)),
            result("c", "2", rewards=(0, 0), truncated=1),
        ]
    )
    assert list(summary.groups) == ["2", "10"]
    assert summary.overall.mean == pytest.approx(0.5)
    assert summary.groups["2"].pass_at_k == pytest.approx(0.5)
    assert summary.groups["10"].pass_at_k == 1.0
    assert summary.overall.truncated == pytest.approx(1 / 6)
    assert summary.prompts == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert EvaluationSummary.from_dict(summary.as_dict()) == summary
    assert EvaluationSummary.from_dict(json.loads(json.dumps(summary.as_dict()))) == summary


def test_older_rows_without_all_columns_can_be_read() -> None:
    row = {
        "prompts": 4,
        "samples": 2,
        "mean": 0.5,
        "low": 0.2,
        "high": 0.8,
        "pass_at_k": 0.75,
        "response_tokens": 9.0,
        "truncated": 0.0,
    }
    summary = EvaluationSummary.from_dict({"overall": row, "groups": {"2": row}})
    assert (summary.overall.pass_at_k, summary.overall.pass_at, summary.overall.majority, summary.prompts) == (
        0.75,
        {},
        None,
        {},
    )


def test_prompt_counts_in_each_of_its_groups() -> None:
    summary = summarise(
        [
            result("a", "task kk", "people 10", rewards=(1,)),
            result("b", "task kk", "people 9", rewards=(0,)),
            result("c", "task math", rewards=(0,)),
        ]
    )
    assert {group: (row.prompts, row.mean) for group, row in summary.groups.items()} == {
        "people 9": (1, 0.0),
        "people 10": (1, 1.0),
        "task kk": (2, 0.5),
        "task math": (1, 0.0),
    }
    assert list(summary.groups) == ["people 9", "people 10", "task kk", "task math"]


def test_pass_at_several_k_is_the_mean_over_prompts() -> None:
    assert [ks_up_to(samples) for samples in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    # 1 of 4 samples is correct: 1/4, and 3 of 6 pairs. 2 of 4 samples are correct: 1/2, and 5 of 6 pairs.
    overall = summarise([result("a", rewards=(1, 0, 0, 0)), result("b", rewards=(1, 1, 0, 0))]).overall
    assert {k: interval.mean for k, interval in overall.pass_at.items()} == pytest.approx(
        {1: 3 / 8, 2: (1 / 2 + 5 / 6) / 2, 4: 1.0}
    )
    # 0.25 and 0.5 have a standard error of 0.125. Student's t with one degree of freedom is 12.706, so the interval
    # reaches both ends.
    assert (overall.pass_at[1].low, overall.pass_at[1].high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("answers", "rewards", "chance"),
    [
        (("a", "a", "b"), (1, 1, 0), 1.0),
        (("a", "b", "b"), (1, 0, 0), 0.0),
        (("a", "b"), (1, 0), 1 / 2),
        (("a", "b", "c"), (1, 0, 0), 1 / 3),
        (("a", "b", "b", "c", "c", "a"), (1, 0, 0, 0, 0, 1), 1 / 3),
        (("1/2", "0.5", "b"), (1, 1, 0), 1.0),  # two spellings of the correct answer
        ((None, None, "a"), (0, 0, 1), 1.0),  # responses without an answer do not vote
        ((None, None), (0, 0), 0.0),
    ],
)
def test_majority_vote_by_hand(answers: tuple[str | None, ...], rewards: tuple[float, ...], chance: float) -> None:
    assert majority_vote(answers, rewards) == pytest.approx(chance)


def test_majority_vote_is_reported_if_all_prompts_have_answers() -> None:
    voting = [
        result("a", "kk", rewards=(1, 1, 0), answers=("x", "x", "y")),
        result("b", "kk", rewards=(1, 0, 0), answers=("x", "y", "y")),
    ]
    silent = result("c", "code", rewards=(1, 1, 1))
    summary = summarise([*voting, silent])
    assert summary.overall.majority is summary.groups["code"].majority is None
    assert summary.groups["kk"].majority is not None
    assert summary.groups["kk"].majority.mean == 0.5
    assert EvaluationSummary.from_dict(json.loads(json.dumps(summary.as_dict()))) == summary


def test_majority_vote_requires_a_reward_for_each_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        majority_vote(("a", "b"), (1.0,))


def test_evaluation_without_prompts_is_rejected() -> None:
    with pytest.raises(ContractError, match="got 0 prompts"):
        summarise([])
