"""Whether a new version takes the place of the one in production: better by more than a margin, and by more than chance explains.

Both were evaluated on the same frozen prompts, so a prompt is a pair, and the interval is that of the mean over pairs: what makes a prompt hard for both
cancels out. It tells whether these very students differ on prompts like these, which is the question here; it says nothing about the method that made them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlad.errors import ContractError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.comparison import paired_t


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """What was decided, and on what evidence.

    Attributes:
        promote: whether the candidate takes the place.
        reason: in one sentence, for the record.
        difference: candidate minus incumbent in mean@k, in [-1, 1]; None without an incumbent.
        interval: its 95% confidence interval; None without an incumbent, or with fewer than two prompts.
    """

    promote: bool
    reason: str
    difference: float | None
    interval: tuple[float, float] | None


def decide(candidate: EvaluationSummary, incumbent: EvaluationSummary | None, *, margin: float) -> PromotionDecision:
    """Compare a candidate with what is in production.

    Args:
        incumbent: evaluated on the same prompts as the candidate; None where nothing is in production yet.
        margin: in mean@k, at least 0; the difference has to be larger.

    Raises:
        ContractError: they were evaluated on different prompts, or not recorded by prompt, so nothing can be said.
    """
    if margin < 0:
        raise ContractError(
            f"the margin of a promotion is at least 0, got {margin}: with less a worse student would be promoted"
        )
    if incumbent is None:
        reason = f"nothing is in production yet: {_percent(candidate.overall.mean)} on {candidate.overall.prompts} prompts is where it starts"
        return PromotionDecision(promote=True, reason=reason, difference=None, interval=None)
    pairs = _pairs(candidate, incumbent)
    if len(pairs) < 2:
        reason = "one prompt says nothing about another: evaluate on more"
        return PromotionDecision(promote=False, reason=reason, difference=pairs[0], interval=None)
    difference = sum(pairs) / len(pairs)
    low, high, _ = paired_t(pairs)
    evidence = (
        f"{_percent(candidate.overall.mean)} against {_percent(incumbent.overall.mean)} on the same {len(pairs)} prompts: {_points(difference)} points, "
        f"95% interval {_points(low)} to {_points(high)}"
    )
    if difference <= margin:
        verdict = f"not better by more than the margin of {100 * margin:g} points"
    elif low <= 0:
        verdict = "better by more than the margin, but chance alone could explain it"
    else:
        return PromotionDecision(
            promote=True, reason=f"better ({evidence})", difference=difference, interval=(low, high)
        )
    return PromotionDecision(
        promote=False, reason=f"{verdict} ({evidence})", difference=difference, interval=(low, high)
    )


def _pairs(candidate: EvaluationSummary, incumbent: EvaluationSummary) -> list[float]:
    """Differences of each prompt's mean reward."""
    new, old = candidate.prompts, incumbent.prompts
    if not new or new.keys() != old.keys():
        only = len(new.keys() ^ old.keys())
        raise ContractError(
            f"candidate and incumbent have to be evaluated on the same prompts to be compared: {len(new)} and {len(old)} prompts, {only} of them only on one "
            f"side. Evaluate the incumbent again on the candidate's prompts (`rlad eval`)"
        )
    return [new[prompt] - old[prompt] for prompt in sorted(new)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
