"""Accuracy of a policy over a set of prompts: mean@k, unbiased pass@k and maj@k, by group, with confidence intervals.

Prompts are the unit that was drawn at random; the k responses to one prompt are not independent. So the interval is that of a mean over prompts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlad.errors import ContractError

CONFIDENCE = 0.95


_SOLVED = 0.5
"""A reward above it counts as solved for pass@k and maj@k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """What became of one prompt's responses.

    Attributes:
        groups: rows of the table that the prompt belongs to, beside the row of all.
        rewards: of each response.
        response_tokens: of each response.
        num_truncated: responses that hit the token budget.
        answers: what each response gave as its answer, for the vote of maj@k; None for a response without one. None altogether where the task's verifier
            takes no answer out of a response.
    """

    prompt_id: str
    groups: tuple[str, ...]
    rewards: tuple[float, ...]
    response_tokens: tuple[int, ...]
    num_truncated: int
    answers: tuple[str | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over prompts, in [0, 1], and its 95% confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """One row of the table.

    Attributes:
        prompts: number of prompts.
        samples: responses a prompt, k.
        mean: mean@k in [0, 1].
        low, high: its 95% confidence interval.
        pass_at_k: share of prompts solved by at least one of k responses.
        response_tokens: mean length.
        truncated: share of responses that hit the token budget.
        pass_at: unbiased pass@j by j, for the powers of two up to k, and k.
        majority: maj@k; None where a prompt's verifier takes no answer out of a response.
    """

    prompts: int
    samples: int
    mean: float
    low: float
    high: float
    pass_at_k: float
    response_tokens: float
    truncated: float
    pass_at: dict[int, Interval] = field(default_factory=dict)
    majority: Interval | None = None

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Accuracy:
        """Read `asdict`'s mapping, also after JSON, which makes text of the keys, and rows recorded before they had `pass_at` and `majority`."""
        pass_at = {int(k): Interval(**interval) for k, interval in row.get("pass_at", {}).items()}
        majority = row.get("majority")
        return cls(**{**row, "pass_at": pass_at, "majority": Interval(**majority) if majority else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """Accuracy of all prompts together and of each group, in the groups' natural order.

    Attributes:
        prompts: mean reward by prompt id, which a paired comparison of two policies needs.
    """

    overall: Accuracy
    groups: dict[str, Accuracy]
    prompts: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, summary: dict[str, Any]) -> EvaluationSummary:
        return cls(
            overall=Accuracy.from_dict(summary["overall"]),
            groups={name: Accuracy.from_dict(row) for name, row in summary["groups"].items()},
            prompts=summary.get("prompts", {}),
        )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv:2107.03374)."""
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ContractError(f"pass@{k} of {num_correct} correct in {num_samples} samples is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks_up_to(num_samples: int) -> list[int]:
    """The k of which pass@k is reported: powers of two up to the number of samples, and that number."""
    return sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})


def majority_vote(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """The chance that a vote among the responses' answers is right; a tie is broken by lot (Wang et al., arXiv:2203.11171).

    Right answers are equal to the expected one, so to each other, and vote together however they are spelled; wrong ones are one where their text is.
    A response without an answer does not vote. Without any vote the chance is 0.
    """
    votes: Counter[str] = Counter()
    right = 0
    for answer, reward in zip(answers, rewards, strict=True):
        if reward > _SOLVED:
            right += 1
        elif answer is not None:
            votes[answer] += 1
    most = max([right, *votes.values()])
    winners = (right == most) + sum(count == most for count in votes.values())
    return 1.0 / winners if right == most > 0 else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values in [0, 1] and its 95% interval (Student's t over prompts; Wilson's where all values are 0 or 1, which stays honest at the ends)."""
    from scipy import stats  # two thirds of a second that whoever only reads an evaluation need not wait for

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if np.isin(array, (0.0, 1.0)).all():
        interval = stats.binomtest(int(array.sum()), len(array)).proportion_ci(CONFIDENCE, method="wilson")
        return mean, float(interval.low), float(interval.high)
    margin = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
        if len(array) > 1
        else 1.0
    )
    return mean, max(0.0, mean - margin), min(1.0, mean + margin)


def summarise(results: Sequence[PromptResult]) -> EvaluationSummary:
    """The table of an evaluation.

    Raises:
        ContractError: no results, or prompts with different numbers of responses.
    """
    if not results or len({len(result.rewards) for result in results}) != 1:
        raise ContractError(f"an evaluation needs prompts with equally many responses; got {len(results)} prompts")
    by_group: defaultdict[str, list[PromptResult]] = defaultdict(list)
    for result in results:
        for group in result.groups:
            by_group[group].append(result)
    return EvaluationSummary(
        overall=_accuracy(results),
        groups={group: _accuracy(by_group[group]) for group in sorted(by_group, key=_natural)},
        prompts={result.prompt_id: float(np.mean(result.rewards)) for result in results},
    )


def _accuracy(results: Sequence[PromptResult]) -> Accuracy:
    samples = len(results[0].rewards)
    mean = _interval([float(np.mean(result.rewards)) for result in results])
    solved = [sum(reward > _SOLVED for reward in result.rewards) for result in results]
    pass_at = {k: _interval([pass_at_k(samples, count, k) for count in solved]) for k in ks_up_to(samples)}
    votes = [majority_vote(result.answers, result.rewards) for result in results if result.answers is not None]
    lengths = [length for result in results for length in result.response_tokens]
    return Accuracy(
        prompts=len(results),
        samples=samples,
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        pass_at_k=pass_at[samples].mean,
        response_tokens=float(np.mean(lengths)),
        truncated=sum(result.num_truncated for result in results) / len(lengths),
        pass_at=pass_at,
        majority=_interval(votes) if len(votes) == len(results) else None,
    )


def _interval(values: Sequence[float]) -> Interval:
    mean, low, high = mean_interval(values)
    return Interval(mean=mean, low=low, high=high)


def _natural(group: str) -> tuple[str, int, float, str]:
    """`people 10` comes after `people 9`, `10` after `9`."""
    prefix, _, last = group.rpartition(" ")
    try:
        return (prefix, 0, float(last), group)
    except ValueError:
        return (prefix, 1, 0.0, group)
