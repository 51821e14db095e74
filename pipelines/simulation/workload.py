"""What a simulated run has to do, and how long each piece of it takes: lengths, speeds, sizes, and the least time that any schedule needs for them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Of the standard normal distribution.
_P99 = 2.3263478740408408


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Response lengths, log-normal: long-tailed, as those of reasoning models are. A group's lengths are decided by its name.

    Attributes:
        median: tokens.
        p99_over_median: how long the tail is; 1 makes all alike.
        longest: tokens at which a response is cut.
        group_size: responses of a group.
    """

    median: float
    p99_over_median: float
    longest: int
    group_size: int
    seed: int = 0

    @property
    def sigma(self) -> float:
        """Standard deviation of the lengths' logarithms."""
        return math.log(self.p99_over_median) / _P99

    def sentence(self) -> str:
        return f"{self.median:g} tokens in the median, {self.p99_over_median:g} times that at the 99th percentile, cut at {self.longest}"

    def of_group(self, uid: str) -> tuple[int, ...]:
        """Tokens of each response."""
        return _lengths(self, uid)


@lru_cache(maxsize=100_000)
def _lengths(lengths: Lengths, uid: str) -> tuple[int, ...]:
    # The name without the data set's fingerprint would do; hashed, it seeds a stream of its own whatever the order of calls.
    seed = int.from_bytes(hashlib.blake2b(f"{lengths.seed}:{uid}".encode(), digest_size=8).digest(), "little")
    drawn = lengths.median * np.exp(lengths.sigma * np.random.default_rng(seed).standard_normal(lengths.group_size))
    return tuple(np.clip(np.rint(drawn), 1, lengths.longest).astype(int).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Seconds that the pieces of work take.

    Attributes:
        token_s: between two tokens of one response, in an engine whose slots are full.
        slots: responses that one rollout worker decodes at once.
        teacher_token_s: of one teacher replica, a token; it scores one group after the other.
        verdict_s: of one verifier process, a group.
        learner_token_s: of the whole learner, a response token, forward and backward.
        update_s: the optimizer's step and putting the weights where samplers find them.
        weights_s: until all samplers have loaded new weights.
    """

    token_s: float
    slots: int
    teacher_token_s: float
    verdict_s: float
    learner_token_s: float
    update_s: float
    weights_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSizes:
    """Workers of each pool. No teacher: the objective uses none."""

    rollout: int
    teacher: int
    verifier: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWork:
    """What each pool has to do in a run, in seconds of the whole pool at work: none can be done sooner.

    Attributes:
        longest_response: seconds of the longest response alone.
    """

    rollout: float
    teacher: float
    verifier: float
    learner: float
    longest_response: float

    @property
    def bound(self) -> float:
        """The least time in which any schedule can do it: that of the pool with the most to do, while all others are hidden behind it."""
        return max(self.rollout, self.teacher, self.verifier, self.learner, self.longest_response)

    @property
    def bottleneck(self) -> str:
        """The pool with the most to do."""
        return max(("rollout", "teacher", "verifier", "learner"), key=lambda pool: getattr(self, pool))


def work_of(groups: Iterable[Sequence[int]], speeds: Speeds, sizes: PoolSizes, *, updates: int) -> PoolWork:
    """The work of groups with these response lengths, trained on in so many optimizer updates."""
    lengths = np.array([sum(group) for group in groups], dtype=float)
    longest = max((max(group) for group in groups), default=0)
    tokens, num_groups = float(lengths.sum()), len(lengths)
    return PoolWork(
        rollout=tokens * speeds.token_s / (sizes.rollout * speeds.slots),
        teacher=tokens * speeds.teacher_token_s / sizes.teacher if sizes.teacher else 0.0,
        verifier=num_groups * speeds.verdict_s / sizes.verifier,
        learner=tokens * speeds.learner_token_s + updates * speeds.update_s,
        longest_response=longest * speeds.token_s,
    )
