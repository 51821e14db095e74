"""Accuracy, pass@k and their intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rlad.errors import ContractError
from rlad.evaluation import EvaluationSummary, PromptResult, mean_interval, pass_at_k, summarise


def result(prompt_id: str, group: str, *rewards: float, truncated: int = 0) -> PromptResult:
    return PromptResult(prompt_id=prompt_id, group=group, rewards=rewards, response_tokens=(10,) * len(rewards), num_truncated=truncated)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 1, 1), (5, 2, 3), (6, 3, 2), (4, 4, 4), (8, 1, 8)])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_correct_sample(n: int, c: int, k: int) -> None:
    samples = [1] * c + [0] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_pass_at_more_samples_than_there_are_is_refused() -> None:
    with pytest.raises(ContractError, match="not defined"):
        pass_at_k(4, 1, 5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    difficulties = generator.beta(2, 2, size=(400, 60))  # prompts differ in difficulty; four samples each
    covered = 0
    for row in difficulties:
        _, low, high = mean_interval(list(generator.binomial(4, row) / 4))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_all_solved_does_not_claim_certainty() -> None:
    mean, low, high = mean_interval([1.0] * 20)
    assert (mean, high) == (1.0, pytest.approx(1.0))
    assert 0.8 < low < 0.9


def test_summary_by_group_in_natural_order() -> None:
    summary = summarise([result("a", "10", 1, 0), result("b", "2", 1, 1), result("c", "2", 0, 0, truncated=1)])
    assert list(summary.groups) == ["2", "10"]
    assert summary.overall.mean == pytest.approx(0.5)
    assert summary.groups["2"].pass_at_k == pytest.approx(0.5)
    assert summary.groups["10"].pass_at_k == 1.0
    assert summary.overall.truncated == pytest.approx(1 / 6)
    assert EvaluationSummary.from_dict(summary.as_dict()) == summary


def test_an_evaluation_without_prompts_is_refused() -> None:
    with pytest.raises(ContractError, match="got 0 prompts"):
        summarise([])
