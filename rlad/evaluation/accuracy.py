"""Accuracy of a policy on a set of prompts: mean@k, unbiased pass@k and maj@k, by group, with confidence intervals.

Prompts are the independent samples; the k responses to one prompt are not independent of each other. Confidence
intervals are therefore those of a mean over prompts.

Denominators: a response whose verification timed out or failed is neither right nor wrong. It is counted apart
(`Accuracy.failed`) and left out: a prompt's mean is that of its judged responses, pass@k of a prompt with fewer judged
responses than k is that of all of them, and a prompt without a judged response is in no mean.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from rlad.errors import ContractError

CONFIDENCE = 0.95

_SOLVED = 0.5
"""Rewards above this value count as solved in pass@k and maj@k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """Results of all responses to one prompt.

    Attributes:
        prompt_id: Id of the prompt.
        groups: Rows of the result table to which the prompt belongs, in addition to the row of all prompts.
        rewards: Reward of each response.
        response_tokens: Length of each response, in tokens.
        num_truncated: Number of responses that reached the token limit.
        answers: Answer extracted from each response for maj@k; None for a response without one. None as a whole if the
            task's verifier does not extract answers.
        is_judged: Whether the verifier came to a verdict on each response; None as a whole if it did on all.
    """

    prompt_id: str
    groups: tuple[str, ...]
    rewards: tuple[float, ...]
    response_tokens: tuple[int, ...]
    num_truncated: int
    answers: tuple[str | None, ...] | None = None
    is_judged: tuple[bool, ...] | None = None

    @property
    def judged(self) -> list[int]:
        """Indices of the responses with a verdict."""
        return [index for index in range(len(self.rewards)) if self.is_judged is None or self.is_judged[index]]

    @property
    def judged_rewards(self) -> list[float]:
        """Rewards of the responses with a verdict."""
        return [self.rewards[index] for index in self.judged]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over prompts, in [0, 1], and its 95% confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Row of the result table.

    Attributes:
        prompts: Number of prompts with a judged response.
        samples: Responses per prompt, k.
        mean: mean@k, in [0, 1].
        low: Lower end of the 95% confidence interval of `mean`.
        high: Upper end of the interval.
        pass_at_k: Fraction of prompts solved by at least one of k responses.
        response_tokens: Mean response length, in tokens.
        truncated: Fraction of responses that reached the token limit.
        pass_at: Unbiased pass@j by j, for the powers of two up to k, and for k.
        majority: maj@k; None if a prompt's verifier does not extract answers.
        failed: Number of responses whose verification timed out or failed. They are in no mean.
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
    failed: int = 0

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Accuracy:
        """Restore a row from the mapping of `asdict`.

        Accepts mappings that went through JSON, which turns keys into strings, and older ones without `pass_at` and
        `majority`.
        """
        pass_at = {int(k): Interval(**interval) for k, interval in row.get("pass_at", {}).items()}
        majority = row.get("majority")
        return cls(**{**row, "pass_at": pass_at, "majority": Interval(**majority) if majority else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """Accuracy of all prompts and of each group.

    Attributes:
        overall: Accuracy of all prompts.
        groups: Accuracy by group, in natural order.
        prompts: Mean reward by prompt id, for paired comparisons of two policies.
        unjudged: Ids of the prompts without a judged response.
    """

    overall: Accuracy
    groups: dict[str, Accuracy]
    prompts: dict[str, float] = field(default_factory=dict)
    unjudged: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as nested mappings, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, summary: dict[str, Any]) -> EvaluationSummary:
        """Restore a summary from the mapping of `as_dict`, also after JSON."""
        return cls(
            overall=Accuracy.from_dict(summary["overall"]),
            groups={name: Accuracy.from_dict(row) for name, row in summary["groups"].items()},
            prompts=summary.get("prompts", {}),
            unjudged=tuple(summary.get("unjudged", ())),
        )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv:2107.03374).

    Args:
        num_samples: Number of samples, n.
        num_correct: Number of correct samples, c.
        k: Number of attempts, at most n.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ContractError(
            f"pass@{k} is not defined for {num_correct} correct of {num_samples} samples: k must be "
            "between 1 and the number of samples"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks_up_to(num_samples: int) -> list[int]:
    """Return the values of k to report pass@k for: powers of two up to the number of samples, and that number."""
    return sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})


def majority_vote(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """Return the probability that a majority vote over the responses is correct (Wang et al., arXiv:2203.11171).

    Ties are broken at random. All correct responses vote together, even if their answers are spelled differently; wrong
    responses vote together if their answers are equal as text. Responses without an answer do not vote. Without any
    vote the probability is 0.

    Args:
        answers: Answer of each response, or None.
        rewards: Reward of each response; above 0.5 counts as correct.
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


@lru_cache(maxsize=4096)  # `binomtest` also computes a p-value, which takes ten times as long as the interval
def _wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of values in [0, 1] with the ends of its 95% confidence interval.

    Uses Student's t over prompts, or the Wilson interval if all values are 0 or 1, which does not collapse at the ends.
    """
    from scipy import stats  # takes two thirds of a second to import, which code that only reads evaluations avoids

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if np.isin(array, (0.0, 1.0)).all():
        return mean, *_wilson_interval(int(array.sum()), len(array))
    margin = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
        if len(array) > 1
        else 1.0
    )
    return mean, max(0.0, mean - margin), min(1.0, mean + margin)


def summarise(results: Sequence[PromptResult]) -> EvaluationSummary:
    """Aggregate the results of an evaluation.

    Raises:
        ContractError: There are no results, no response was judged, or prompts have different numbers of responses.
    """
    if not results or len({len(result.rewards) for result in results}) != 1:
        raise ContractError(
            f"an evaluation requires prompts with the same number of responses; got {len(results)} prompts"
        )
    judged = [result for result in results if result.judged]
    if not judged:
        raise ContractError(
            f"an evaluation requires responses with a verdict; verification timed out or failed on all {len(results)} "
            "prompts"
        )
    by_group: defaultdict[str, list[PromptResult]] = defaultdict(list)
    for result in results:
        for group in result.groups:
            by_group[group].append(result)
    return EvaluationSummary(
        overall=_accuracy(results),
        groups={
            group: _accuracy(by_group[group])
            for group in sorted(by_group, key=natural_order)
            if any(result.judged for result in by_group[group])
        },
        prompts={result.prompt_id: float(np.mean(result.judged_rewards)) for result in judged},
        unjudged=tuple(result.prompt_id for result in results if not result.judged),
    )


def _accuracy(results: Sequence[PromptResult]) -> Accuracy:
    samples = len(results[0].rewards)
    judged = [result for result in results if result.judged]
    rewards = [result.judged_rewards for result in judged]
    mean = _interval([float(np.mean(each)) for each in rewards])
    solved = [sum(reward > _SOLVED for reward in each) for each in rewards]
    pass_at = {
        k: _interval(
            [pass_at_k(len(each), count, min(k, len(each))) for each, count in zip(rewards, solved, strict=True)]
        )
        for k in ks_up_to(samples)
    }
    votes = [
        majority_vote([result.answers[index] for index in result.judged], result.judged_rewards)
        for result in judged
        if result.answers is not None
    ]
    lengths = [length for result in results for length in result.response_tokens]
    return Accuracy(
        prompts=len(judged),
        samples=samples,
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        pass_at_k=pass_at[samples].mean,
        response_tokens=float(np.mean(lengths)),
        truncated=sum(result.num_truncated for result in results) / len(lengths),
        pass_at=pass_at,
        majority=_interval(votes) if len(votes) == len(judged) else None,
        failed=sum(len(result.rewards) - len(result.judged) for result in results),
    )


def _interval(values: Sequence[float]) -> Interval:
    mean, low, high = mean_interval(values)
    return Interval(mean=mean, low=low, high=high)


def natural_order(group: str) -> tuple[str, int, float, str]:
    """Return a sort key in natural order: `people 10` comes after `people 9`."""
    prefix, _, last = group.rpartition(" ")
    try:
        return (prefix, 0, float(last), group)
    except ValueError:
        return (prefix, 1, 0.0, group)
