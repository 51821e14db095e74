"""Group advantages against the definition."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.advantages import AdvantageEstimator, OverlongPenalty, group_advantages, imitated_responses, shaped_rewards
from rlad.errors import ContractError


def test_population_standard_deviation_by_hand() -> None:
    # mean 1/4, population std sqrt(3)/4
    assert group_advantages([1, 0, 0, 0]).tolist() == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3])


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=16))
def test_equals_the_definition(rewards: list[float]) -> None:
    deviation = statistics.pstdev(rewards)
    mean = statistics.fmean(rewards)
    expected = [(reward - mean) / deviation if deviation > 0 else 0.0 for reward in rewards]
    advantages = group_advantages(np.array(rewards, dtype=np.float32))
    assert advantages.dtype == np.float32
    assert np.isfinite(advantages).all()
    if len(set(rewards)) == 1:
        assert (advantages == 0).all()
    elif deviation > 1e-3:
        assert advantages.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7e-11, 1e300])
@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_group_with_equal_rewards_gets_exactly_zero(reward: float, size: int) -> None:
    """The rounded mean of three times 0.1 is not 0.1, so a computed deviation would give advantages of order 1."""
    assert group_advantages([reward] * size).tolist() == [0.0] * size


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 1.0, 1e300])
def test_scale_of_the_rewards_does_not_matter(scale: float) -> None:
    assert group_advantages([0.0, scale]).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("rewards", [[], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_invalid_rewards_are_refused(rewards: list[float]) -> None:
    with pytest.raises(ContractError, match="one-dimensional, non-empty array of finite rewards; got"):
        group_advantages(rewards)


def test_mean_only_and_leave_one_out_by_hand() -> None:
    """Rewards 1, 0, 0, 0: the mean is 1/4; the mean of the three others is 0 for the first and 1/3 for the rest."""
    assert group_advantages([1, 0, 0, 0], "group_mean_only").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages([1, 0, 0, 0], "rloo").tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


@pytest.mark.parametrize("estimator", ["group_std", "group_mean_only", "rloo"])
@pytest.mark.parametrize("rewards", [[1.0], [0.1, 0.1, 0.1]])
def test_equal_rewards_and_a_single_response_have_zero_advantage(
    estimator: AdvantageEstimator, rewards: list[float]
) -> None:
    assert group_advantages(rewards, estimator).tolist() == [0.0] * len(rewards)


def test_overlong_punishment_by_hand() -> None:
    """Budget 100, buffer 20, penalty 0.5: no penalty up to 80 tokens, half of it at 90, all of it at 100."""
    overlong = OverlongPenalty(max_tokens=100, buffer_tokens=20, penalty=0.5)
    assert shaped_rewards([1, 1, 1, 0], [10, 80, 90, 100], overlong).tolist() == [1.0, 1.0, 0.75, -0.5]
    assert shaped_rewards([1, 0], [100, 100], None).tolist() == [1.0, 0.0]


def test_imitation_mask_by_hand() -> None:
    assert imitated_responses([1, 0, 0.5], "none").tolist() == [True, True, True]
    assert imitated_responses([1, 0, 0.5], "response").tolist() == [False, True, True]
    assert imitated_responses([1, 0, 0.5], "group").tolist() == [False, False, False]
    assert imitated_responses([0, 0, 0.5], "group").tolist() == [True, True, True]
