"""Latency of a model: percentiles, speed, and the decision of a gate."""

from __future__ import annotations

import pytest

from rlad.errors import ContractError
from rlad.evaluation.latency import Latency, check_latency, summarise_latency


def latency(p95_s: float) -> Latency:
    return Latency(requests=64, concurrency=8, median_s=0.5, p95_s=p95_s, response_tokens=20.0, tokens_per_s=80.0)


def test_percentiles_are_those_of_the_responses() -> None:
    # 21 times from 0 to 20: the median is the 11th, and 95% of 20 intervals end at the 20th.
    found = summarise_latency([float(second) for second in range(21)], [10] * 21, elapsed_s=42.0, concurrency=4)
    assert (found.requests, found.concurrency) == (21, 4)
    assert (found.median_s, found.p95_s) == pytest.approx((10.0, 19.0))
    assert (found.response_tokens, found.tokens_per_s) == pytest.approx((10.0, 5.0))


@pytest.mark.parametrize(("seconds", "tokens"), [([], []), ([1.0], [1, 2])])
def test_no_responses_and_unequal_lengths_are_refused(seconds: list[float], tokens: list[int]) -> None:
    with pytest.raises(ContractError, match="as many times as lengths"):
        summarise_latency(seconds, tokens, elapsed_s=1.0, concurrency=1)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "max_s", "max_growth", "is_passed"),
    [
        (1.0, None, 1.0, None, True),
        (1.01, None, 1.0, None, False),
        (2.0, None, None, 0.0, True),  # nothing is in production yet
        (1.2, 1.0, None, 0.25, True),
        (1.3, 1.0, None, 0.25, False),
        (0.5, 1.0, None, 0.0, True),
        (1.2, 1.0, 1.1, 0.25, False),
    ],
)
def test_limits_hold_for_the_95th_percentile(
    candidate: float, incumbent: float | None, max_s: float | None, max_growth: float | None, is_passed: bool
) -> None:
    present = None if incumbent is None else latency(incumbent)
    decision = check_latency(latency(candidate), present, max_s=max_s, max_growth=max_growth)
    assert decision.is_passed == is_passed
    assert f"p95 {candidate:.2f} s" in decision.reason
    if max_growth is not None and incumbent is not None:
        assert f"{candidate / incumbent - 1:+.0%}" in decision.reason
