"""Promotion requires an improvement above the margin that is significant."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlad.errors import ContractError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.evaluation.promotion import GateDecision, check_gate, decide


def evaluation(rewards: Sequence[float], *, first: int = 0) -> EvaluationSummary:
    """Evaluation with one response per prompt."""
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{first + index}",
                groups=("all prompts",),
                rewards=(reward,),
                response_tokens=(3,),
                num_truncated=0,
            )
            for index, reward in enumerate(rewards)
        ]
    )


def test_clearly_better_candidate_is_promoted() -> None:
    # 8 of 16 pairs are +1: mean 1/2, sd sqrt(16/15 * 1/4) = 0.5164, t(0.975, 15) = 2.1314: 0.5 +- 2.1314 * 0.5164 / 4.
    decision = decide(evaluation([1.0] * 16), evaluation([1.0, 0.0] * 8), margin=0.25)
    assert decision.promote
    assert decision.difference == 0.5
    assert decision.interval == pytest.approx((0.2248, 0.7752), abs=1e-4)
    assert "100.0% against 50.0% on the same 16 prompts: +50.0 points, 95% interval +22.5 to +77.5" in decision.reason


def test_difference_equal_to_the_margin_is_not_enough() -> None:
    decision = decide(evaluation([1.0] * 16), evaluation([1.0, 0.0] * 8), margin=0.5)
    assert not decision.promote
    assert "not better by more than the margin of 50 points" in decision.reason


def test_insignificant_difference_is_not_enough() -> None:
    # 3 of 16 prompts won, 1 lost: mean 2/16, sum of squares 4, variance (4 - 16/64) / 15 = 0.25, standard error 0.125,
    # t(0.975, 15) = 2.1314.
    candidate, incumbent = [1.0] * 3 + [0.0] + [1.0] * 12, [0.0] * 3 + [1.0] + [1.0] * 12
    decision = decide(evaluation(candidate), evaluation(incumbent), margin=0.0)
    assert not decision.promote
    assert decision.difference == 0.125
    assert decision.interval == pytest.approx((0.125 - 2.1314 * 0.125, 0.125 + 2.1314 * 0.125), abs=1e-4)
    assert "better by more than the margin, but not significantly" in decision.reason


def test_pairing_finds_differences_that_separate_intervals_miss() -> None:
    # Prompts differ widely in difficulty, and the candidate is slightly better on each of them.
    incumbent = evaluation([index / 20 for index in range(16)])
    candidate = evaluation([index / 20 + (0.04 if index % 2 else 0.06) for index in range(16)])
    assert candidate.overall.low < incumbent.overall.high
    assert decide(candidate, incumbent, margin=0.02).promote


def test_worse_candidate_is_not_promoted() -> None:
    decision = decide(evaluation([0.0] * 16), evaluation([1.0] * 16), margin=0.0)
    assert not decision.promote
    assert decision.difference == -1.0


def test_equal_candidate_is_not_promoted() -> None:
    decision = decide(evaluation([1.0, 0.0]), evaluation([1.0, 0.0]), margin=0.0)
    assert not decision.promote
    assert decision.interval == (0.0, 0.0)


def test_first_version_is_promoted() -> None:
    decision = decide(evaluation([0.0, 1.0]), None, margin=0.5)
    assert decision.promote
    assert (decision.difference, decision.interval) == (None, None)
    assert "nothing is in production yet" in decision.reason


def test_single_prompt_does_not_promote() -> None:
    decision = decide(evaluation([1.0]), evaluation([0.0]), margin=0.0)
    assert not decision.promote
    assert decision.interval is None


def test_evaluations_on_different_prompts_are_rejected() -> None:
    with pytest.raises(ContractError, match="2 and 2 prompts, 2 of them only on one side"):
        decide(evaluation([1.0, 1.0], first=1), evaluation([0.0, 0.0]), margin=0.0)
    unrecorded = EvaluationSummary.from_dict({**evaluation([1.0]).as_dict(), "prompts": {}})
    with pytest.raises(ContractError, match="same prompts"):
        decide(unrecorded, unrecorded, margin=0.0)


def test_negative_margin_is_rejected() -> None:
    with pytest.raises(ContractError, match="worse student"):
        decide(evaluation([1.0, 1.0]), evaluation([0.0, 0.0]), margin=-0.1)


def test_single_prompt_never_promotes() -> None:
    decision = decide(evaluation([1.0]), evaluation([0.0]), margin=0.0)
    assert (decision.promote, decision.difference, decision.interval) == (False, 1.0, None)
    assert decision.reason == "a single prompt gives no confidence interval; evaluate on more prompts"


def test_interval_that_touches_zero_does_not_promote() -> None:
    """Without any spread the interval is the difference itself; a margin of 0 must still be exceeded."""
    decision = decide(evaluation([1.0, 0.0]), evaluation([1.0, 0.0]), margin=0.0)
    assert decision.promote is False
    assert decision.reason.startswith("not better by more than the margin of 0 points (")
    # Differences of 1 and 0: mean 0.5, and an interval from -5.9 to 6.9.
    decision = decide(evaluation([1.0, 0.0]), evaluation([0.0, 0.0]), margin=0.1)
    assert decision.promote is False
    assert decision.reason.startswith("better by more than the margin, but not significantly (")


def gate(candidate: Sequence[float], incumbent: Sequence[float] | None = None, **rule: float | None) -> GateDecision:
    present = evaluation(incumbent) if incumbent is not None else None
    return check_gate(evaluation(candidate), present, **{"max_loss": None, "min_accuracy": None, **rule})


def test_gate_passes_only_if_the_interval_excludes_a_greater_loss() -> None:
    # 20 pairs, one of them -1: mean -0.05, standard error 0.05, t(0.975, 19) = 2.0930: lower limit -0.15465.
    worse = [0.0] + [1.0] * 19
    passed = gate(worse, [1.0] * 20, max_loss=0.155)
    assert passed.is_passed
    assert passed.difference == pytest.approx(-0.05)
    assert passed.interval == pytest.approx((-0.15465, 0.05465), abs=1e-4)
    assert "95.0% on 20 prompts, against 100.0%: -5.0 points, 95% interval -15.5 to +5.5" in passed.reason
    failed = gate(worse, [1.0] * 20, max_loss=0.154)
    assert not failed.is_passed
    assert "a loss of more than 15.4 points is not excluded" in failed.reason


def test_equal_results_lose_nothing() -> None:
    assert gate([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], max_loss=0.0).is_passed
    assert not gate([1.0, 0.0, 1.0], [1.0, 1.0, 1.0], max_loss=0.0).is_passed


def test_gate_with_a_minimum_accepts_it_exactly() -> None:
    nine = [1.0] * 9 + [0.0]
    assert gate(nine, min_accuracy=0.9).is_passed
    failed = gate(nine, min_accuracy=0.91)
    assert (failed.is_passed, failed.difference) == (False, None)
    assert "below the minimum of 91.0% (90.0% on 10 prompts)" in failed.reason


def test_both_rules_of_a_gate_must_hold() -> None:
    for first, second in ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5)):
        found = gate([1.0, 0.0] * 8, [1.0, 0.0] * 7 + [1.0, 1.0], max_loss=first, min_accuracy=second)
        assert found.is_passed == (first == 0.5)
    assert not gate([1.0, 0.0] * 8, [1.0, 0.0] * 8, max_loss=0.5, min_accuracy=0.6).is_passed


def test_gate_without_an_incumbent_has_only_its_minimum() -> None:
    assert gate([1.0, 0.0], max_loss=0.0).is_passed
    assert not gate([1.0, 0.0], max_loss=0.0, min_accuracy=0.6).is_passed


def test_gate_without_an_interval_fails() -> None:
    assert "single prompt" in gate([1.0], [1.0], max_loss=0.1).reason
    assert not gate([1.0], [1.0], max_loss=0.1).is_passed


def test_gate_refuses_evaluations_on_different_prompts() -> None:
    with pytest.raises(ContractError, match="same prompts"):
        check_gate(evaluation([1.0] * 3), evaluation([1.0] * 3, first=1), max_loss=0.1, min_accuracy=None)
