"""Promotion decision: a candidate must be better than the production version by a margin, and significantly so.

Both versions are evaluated on the same frozen prompts, so the confidence interval is that of the mean over pairs, in
which the difficulty of a prompt cancels out. The interval compares these two students on prompts of this kind. It says
nothing about the methods that trained them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlad.errors import ContractError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.comparison import paired_t

# Means of equal rewards differ by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """Promotion decision with its evidence.

    Attributes:
        promote: Whether to promote the candidate.
        reason: One sentence for the record.
        difference: mean@k of the candidate minus that of the incumbent, in [-1, 1]; None without an incumbent.
        interval: 95% confidence interval of `difference`; None without an incumbent, or with fewer than two prompts.
    """

    promote: bool
    reason: str
    difference: float | None
    interval: tuple[float, float] | None


def decide(candidate: EvaluationSummary, incumbent: EvaluationSummary | None, *, margin: float) -> PromotionDecision:
    """Compare a candidate with the version in production.

    Args:
        candidate: Evaluation of the candidate.
        incumbent: Evaluation of the production version on the same prompts; None if nothing is in production yet.
        margin: Difference in mean@k that the candidate must exceed, at least 0.

    Raises:
        ContractError: The evaluations have different prompts, or no results by prompt.
    """
    if margin < 0:
        raise ContractError(
            f"the promotion margin must be at least 0; got {margin}, which would promote a worse student"
        )
    if incumbent is None:
        reason = (
            f"nothing is in production yet; the first version reaches {_percent(candidate.overall.mean)} on "
            f"{candidate.overall.prompts} prompts"
        )
        return PromotionDecision(promote=True, reason=reason, difference=None, interval=None)
    pairs = _pairs(candidate, incumbent)
    if len(pairs) < 2:
        reason = "a single prompt gives no confidence interval; evaluate on more prompts"
        return PromotionDecision(promote=False, reason=reason, difference=pairs[0], interval=None)
    difference = sum(pairs) / len(pairs)
    low, high, _ = paired_t(pairs)
    evidence = (
        f"{_percent(candidate.overall.mean)} against {_percent(incumbent.overall.mean)} on the same {len(pairs)} "
        f"prompts: {_points(difference)} points, 95% interval {_points(low)} to {_points(high)}"
    )
    if difference <= margin:
        verdict = f"not better by more than the margin of {100 * margin:g} points"
    elif low <= 0:
        verdict = "better by more than the margin, but not significantly"
    else:
        return PromotionDecision(
            promote=True, reason=f"better ({evidence})", difference=difference, interval=(low, high)
        )
    return PromotionDecision(
        promote=False, reason=f"{verdict} ({evidence})", difference=difference, interval=(low, high)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """Decision of one gate with its evidence.

    Attributes:
        is_passed: Whether the candidate passed.
        reason: One sentence for the record.
        difference: mean@k of the candidate minus that of the incumbent, in [-1, 1]; None if they were not compared.
        interval: 95% confidence interval of `difference`; None if they were not compared, or have a single prompt.
    """

    is_passed: bool
    reason: str
    difference: float | None = None
    interval: tuple[float, float] | None = None


def check_gate(
    candidate: EvaluationSummary,
    incumbent: EvaluationSummary | None,
    *,
    max_loss: float | None,
    min_accuracy: float | None,
) -> GateDecision:
    """Check a candidate on a gate's prompts.

    The test against the incumbent is one of non-inferiority: a loss above `max_loss` must be outside the 95% interval
    of the paired difference. A gate with few prompts therefore fails rather than passes.

    Args:
        candidate: Evaluation of the candidate.
        incumbent: Evaluation of the production version on the same prompts; None if nothing is in production yet,
            which passes `max_loss`.
        max_loss: Maximum loss in mean@k, at least 0; None does not compare.
        min_accuracy: Minimum mean@k, in [0, 1]; None for no minimum.

    Raises:
        ContractError: The evaluations have different prompts, or no results by prompt.
    """
    accuracy, prompts = candidate.overall.mean, candidate.overall.prompts
    facts, problems = [f"{_percent(accuracy)} on {prompts} prompts"], list[str]()
    if min_accuracy is not None and accuracy < min_accuracy - _ROUNDING:
        problems.append(f"below the minimum of {_percent(min_accuracy)}")
    difference: float | None = None
    interval: tuple[float, float] | None = None
    if max_loss is not None and incumbent is not None:
        pairs = _pairs(candidate, incumbent)
        difference = sum(pairs) / len(pairs)
        if len(pairs) < 2:
            problems.append("a single prompt gives no confidence interval")
        else:
            low, high, _ = paired_t(pairs)
            interval = (low, high)
            facts.append(
                f"against {_percent(incumbent.overall.mean)}: {_points(difference)} points, 95% interval "
                f"{_points(low)} to {_points(high)}"
            )
            if low < -max_loss - _ROUNDING:
                problems.append(f"a loss of more than {100 * max_loss:g} points is not excluded")
    reason = f"{'; '.join(problems)} ({', '.join(facts)})" if problems else ", ".join(facts)
    return GateDecision(is_passed=not problems, reason=reason, difference=difference, interval=interval)


def _pairs(candidate: EvaluationSummary, incumbent: EvaluationSummary) -> list[float]:
    """Return the difference of the mean reward for each prompt that was judged on both sides."""
    new, old = candidate.prompts, incumbent.prompts
    only = len((new.keys() | {*candidate.unjudged}) ^ (old.keys() | {*incumbent.unjudged}))
    if not new.keys() & old.keys() or only:
        raise ContractError(
            f"candidate and incumbent must be evaluated on the same prompts; got {len(new)} and {len(old)} prompts, "
            f"{only} of them only on one side. Evaluate the incumbent again on the candidate's prompts (`rlad eval`)"
        )
    return [new[prompt] - old[prompt] for prompt in sorted(new.keys() & old.keys())]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
