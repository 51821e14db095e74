"""Accuracy of a policy over a set of prompts: mean@k and unbiased pass@k, by group, with confidence intervals.

Prompts are the unit that was drawn at random; the k responses to one prompt are not independent. So the interval is that of a mean over prompts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from rlad.errors import ContractError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """What became of one prompt's responses.

    Attributes:
        group: value of the metadata key that the table is grouped by.
        rewards: of each response; above 0.5 counts as solved for pass@k.
        response_tokens: of each response.
        num_truncated: responses that hit the token budget.
    """

    prompt_id: str
    group: str
    rewards: tuple[float, ...]
    response_tokens: tuple[int, ...]
    num_truncated: int


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
    """

    prompts: int
    samples: int
    mean: float
    low: float
    high: float
    pass_at_k: float
    response_tokens: float
    truncated: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """Accuracy of all prompts together and of each group, in the groups' natural order."""

    overall: Accuracy
    groups: dict[str, Accuracy]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, summary: dict[str, Any]) -> EvaluationSummary:
        return cls(overall=Accuracy(**summary["overall"]), groups={name: Accuracy(**row) for name, row in summary["groups"].items()})


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv:2107.03374)."""
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ContractError(f"pass@{k} of {num_correct} correct in {num_samples} samples is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values in [0, 1] and its 95% interval (Student's t over prompts; Wilson's where all values are 0 or 1, which stays honest at the ends)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if np.isin(array, (0.0, 1.0)).all():
        interval = stats.binomtest(int(array.sum()), len(array)).proportion_ci(CONFIDENCE, method="wilson")
        return mean, float(interval.low), float(interval.high)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else 1.0
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
        by_group[result.group].append(result)
    return EvaluationSummary(overall=_accuracy(results), groups={group: _accuracy(by_group[group]) for group in sorted(by_group, key=_natural)})


def _accuracy(results: Sequence[PromptResult]) -> Accuracy:
    samples = len(results[0].rewards)
    mean, low, high = mean_interval([float(np.mean(result.rewards)) for result in results])
    solved = [pass_at_k(samples, sum(reward > 0.5 for reward in result.rewards), samples) for result in results]
    lengths = [length for result in results for length in result.response_tokens]
    return Accuracy(
        prompts=len(results),
        samples=samples,
        mean=mean,
        low=low,
        high=high,
        pass_at_k=float(np.mean(solved)),
        response_tokens=float(np.mean(lengths)),
        truncated=sum(result.num_truncated for result in results) / len(lengths),
    )


def _natural(group: str) -> tuple[int, float, str]:
    try:
        return (0, float(group), group)
    except ValueError:
        return (1, 0.0, group)
