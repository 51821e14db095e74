"""Statistics of a teacher on responses of the student, before any training: would imitation raise the reward?

A response's *pull* is `sum_t (log pi_T - log pi_old)`, the direction in which imitation moves its probability. To first
order, imitation changes the expected reward by the covariance of reward and pull over the student's responses, so what
counts is whether the teacher pulls up the better responses of a prompt. `agreement` is that, in one number: the share
of pairs of responses to one prompt with different rewards in which the better one has the larger pull. At 0.5 the
teacher knows nothing about the reward; below, imitation lowers it.

Shape letters: G responses of a group, T response tokens of the group, K likeliest tokens of a model.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError
from rlad.evaluation.accuracy import Interval, mean_interval, natural_order

Array = npt.NDArray[Any]

HISTOGRAM_EDGES = tuple(np.round(np.linspace(-4, 4, 33), 2).tolist())
"""Edges of the histogram of log ratios, in nats. The outer bins hold everything beyond them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponses:
    """Responses of the student to one prompt, judged and scored.

    Attributes:
        kinds: Kinds of problem that the prompt belongs to.
        rewards: Reward of each response, [G].
        advantages: Advantage of each response, [G]; 0 for responses without a verdict.
        is_judged: Which responses the verifier judged, bool [G].
        offsets: Boundaries of the responses in the token columns, int [G + 1].
        student: Log-probabilities of the sampled tokens under the student, in nats, [T].
        teacher: The same under the teacher; NaN or infinite where it has none, [T].
        overlap: Share of the student's K likeliest tokens that are among the teacher's K likeliest, NaN where
            it is unknown, [T].
    """

    kinds: tuple[str, ...]
    rewards: Array
    advantages: Array
    is_judged: Array
    offsets: Array
    student: Array
    teacher: Array
    overlap: Array

    def __post_init__(self) -> None:
        responses, tokens = len(self.offsets) - 1, int(self.offsets[-1])
        for name, length in (("rewards", responses), ("advantages", responses), ("is_judged", responses)):
            if len(getattr(self, name)) != length:
                raise ContractError(f"ScoredResponses: {name} must have {length} entries, one per response")
        for name in ("student", "teacher", "overlap"):
            if len(getattr(self, name)) != tokens:
                raise ContractError(f"ScoredResponses: {name} must have {tokens} entries, one per token")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSettings:
    """Settings of TRRD that decide which tokens its anchor clips at pi = pi_old.

    Attributes:
        alpha: Weight of pi_old in the anchor.
        clamp: Bounds of the log ratio to the teacher, in nats.
        eps_low: Lower clip range.
        eps_high: Upper clip range.
    """

    alpha: float
    clamp: tuple[float, float]
    eps_low: float
    eps_high: float

    @property
    def veto_thresholds(self) -> tuple[float | None, float | None]:
        """Log ratios below and above which the anchor clips at pi = pi_old; None where the clamp prevents it."""
        if self.alpha == 1:
            return None, None
        low, high = math.log(1 - self.eps_low) / (1 - self.alpha), math.log(1 + self.eps_high) / (1 - self.alpha)
        return low if self.clamp[0] < low else None, high if self.clamp[1] > high else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindStatistics:
    """Statistics of one kind of problem, or of all. A mean over nothing is None.

    "Better" and "worse" responses are those with a positive and a negative advantage.

    Attributes:
        prompts: Number of prompts.
        mixed_prompts: Prompts whose responses have different rewards. Only these tell about agreement.
        reward: Mean reward of the judged responses.
        agreement: Mean over mixed prompts of the share of pairs that the teacher orders as the reward does, with the
            95% interval over prompts.
        token_disagreement: Share of the tokens with a non-zero advantage that the teacher pulls against its sign.
        overlap: Mean share of likely tokens that student and teacher have in common.
        log_ratio: Mean of log pi_old - log pi_T, in nats.
        log_ratio_better: The same over better responses.
        log_ratio_worse: The same over worse responses.
        veto_positive: Share of the tokens of better responses that TRRD's anchor clips at pi = pi_old.
        veto_negative: The same over worse responses.
        missing: Share of the tokens without a finite teacher log-probability; these are in no other figure.
    """

    prompts: int
    mixed_prompts: int
    reward: float | None
    agreement: Interval | None
    token_disagreement: float | None
    overlap: float | None
    log_ratio: float | None
    log_ratio_better: float | None
    log_ratio_worse: float | None
    veto_positive: float | None
    veto_negative: float | None
    missing: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionStatistics:
    """Mean log ratio of the tokens at positions `start` to `end` (exclusive) of their responses."""

    start: int
    end: int
    tokens: int
    better: float | None
    worse: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCheck:
    """Result of a check.

    Attributes:
        overall: Statistics over all prompts.
        kinds: Statistics by kind of problem, in natural order.
        positions: Mean log ratio by position in the response.
        histogram_better: Share of the better responses' tokens in each bin of `HISTOGRAM_EDGES`.
        histogram_worse: The same of the worse responses.
    """

    overall: KindStatistics
    kinds: dict[str, KindStatistics]
    positions: tuple[PositionStatistics, ...]
    histogram_better: tuple[float, ...]
    histogram_worse: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self)


def support_overlap(student_ids: Array, teacher_ids: Array) -> Array:
    """Return the share of one model's K likeliest tokens that are among the other's, at each position.

    Args:
        student_ids: Token ids, distinct at each position, int [T, K].
        teacher_ids: The same of the teacher, int [T, K].

    Returns:
        float64 [T].
    """
    shared: Array = (student_ids[:, :, None] == teacher_ids[:, None, :]).any(axis=2).mean(axis=1)
    return shared


def check_teacher(groups: Sequence[ScoredResponses], anchor: AnchorSettings, *, bins: int = 10) -> TeacherCheck:
    """Compute the statistics of a teacher on scored responses.

    Args:
        groups: Responses by prompt.
        anchor: TRRD settings for the veto fractions.
        bins: Number of ranges of positions, of equal width up to the longest response.

    Raises:
        ContractError: There are no groups.
    """
    if not groups:
        raise ContractError("check_teacher: expected at least one group of responses; got none")
    by_kind: defaultdict[str, list[_GroupColumns]] = defaultdict(list)
    everything = [_columns(group) for group in groups]
    for group, columns in zip(groups, everything, strict=True):
        for kind in group.kinds:
            by_kind[kind].append(columns)
    whole = _Tokens.of(everything)
    return TeacherCheck(
        overall=_statistics(everything, anchor),
        kinds={kind: _statistics(by_kind[kind], anchor) for kind in sorted(by_kind, key=natural_order)},
        positions=_by_position(whole, bins),
        histogram_better=_histogram(whole.log_ratio[whole.advantage > 0]),
        histogram_worse=_histogram(whole.log_ratio[whole.advantage < 0]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Columns over tokens with a finite teacher log-probability."""

    log_ratio: Array
    advantage: Array
    position: Array
    overlap: Array

    @classmethod
    def of(cls, groups: Sequence[_GroupColumns]) -> _Tokens:
        names = ("log_ratio", "advantage", "position", "overlap")
        return cls(**{name: np.concatenate([getattr(each.tokens, name) for each in groups]) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupColumns:
    """One group: its tokens, its judged rewards, and its agreement (None if the rewards are equal)."""

    tokens: _Tokens
    rewards: Array
    agreement: float | None
    missing: int
    total: int


def _columns(group: ScoredResponses) -> _GroupColumns:
    lengths = np.diff(group.offsets)
    log_ratio = group.student.astype(np.float64) - group.teacher.astype(np.float64)
    finite = np.isfinite(log_ratio)
    response = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(log_ratio)) - np.repeat(group.offsets[:-1], lengths)
    pull = np.bincount(response[finite], weights=-log_ratio[finite], minlength=len(lengths))
    judged = group.is_judged.astype(bool)
    tokens = _Tokens(
        log_ratio=log_ratio[finite],
        advantage=group.advantages[response][finite],
        position=position[finite],
        overlap=group.overlap[finite],
    )
    return _GroupColumns(
        tokens=tokens,
        rewards=group.rewards[judged],
        agreement=_pair_agreement(group.rewards[judged], pull[judged]),
        missing=int((~finite).sum()),
        total=len(finite),
    )


def _pair_agreement(rewards: Array, pull: Array) -> float | None:
    """Return the share of pairs with different rewards that `pull` orders alike. Equal pulls count as half."""
    is_better = rewards[:, None] > rewards[None, :]
    if not is_better.any():
        return None
    difference = pull[:, None] - pull[None, :]
    return float(np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))[is_better].mean())


def _statistics(groups: Sequence[_GroupColumns], anchor: AnchorSettings) -> KindStatistics:
    tokens = _Tokens.of(groups)
    better, worse = tokens.advantage > 0, tokens.advantage < 0
    agreements = [group.agreement for group in groups if group.agreement is not None]
    at_start = (1 - anchor.alpha) * np.clip(tokens.log_ratio, *anchor.clamp)
    total = sum(group.total for group in groups)
    return KindStatistics(
        prompts=len(groups),
        mixed_prompts=len(agreements),
        reward=_mean(np.concatenate([group.rewards for group in groups])),
        agreement=_interval(agreements) if agreements else None,
        token_disagreement=_mean((tokens.log_ratio * tokens.advantage > 0)[better | worse]),
        overlap=_mean(tokens.overlap[~np.isnan(tokens.overlap)]),
        log_ratio=_mean(tokens.log_ratio),
        log_ratio_better=_mean(tokens.log_ratio[better]),
        log_ratio_worse=_mean(tokens.log_ratio[worse]),
        veto_positive=_mean((at_start > math.log(1 + anchor.eps_high))[better]),
        veto_negative=_mean((at_start < math.log(1 - anchor.eps_low))[worse]),
        missing=sum(group.missing for group in groups) / total if total else None,
    )


def _by_position(tokens: _Tokens, bins: int) -> tuple[PositionStatistics, ...]:
    if not len(tokens.position):
        return ()
    longest = int(tokens.position.max()) + 1
    edges = np.unique(np.linspace(0, longest, bins + 1).round().astype(int)).tolist()
    found = []
    for start, end in itertools.pairwise(edges):
        inside = (tokens.position >= start) & (tokens.position < end)
        found.append(
            PositionStatistics(
                start=start,
                end=end,
                tokens=int(inside.sum()),
                better=_mean(tokens.log_ratio[inside & (tokens.advantage > 0)]),
                worse=_mean(tokens.log_ratio[inside & (tokens.advantage < 0)]),
            )
        )
    return tuple(found)


def _histogram(values: Array) -> tuple[float, ...]:
    counts, _ = np.histogram(np.clip(values, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), bins=HISTOGRAM_EDGES)
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    return tuple(shares)


def _interval(values: Sequence[float]) -> Interval:
    mean, low, high = mean_interval(values)
    return Interval(mean=mean, low=low, high=high)


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None
