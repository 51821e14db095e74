"""Workload of a simulated run: response lengths, speeds, pool sizes, and the lower bound of any schedule."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# 99th percentile of the standard normal distribution.
_P99 = 2.3263478740408408


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal response lengths, long-tailed like those of reasoning models. A group's uid determines its lengths.

    Attributes:
        median: Median length, tokens.
        p99_over_median: 99th percentile over the median; 1 makes all lengths equal.
        longest: Length at which a response is cut, tokens.
        group_size: Responses of a group.
        seed: Seed of the lengths.
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
        """Describe the lengths in one sentence."""
        return (
            f"median of {self.median:g} tokens, 99th percentile {self.p99_over_median:g} times the median, "
            f"cut at {self.longest} tokens"
        )

    def of_group(self, uid: str) -> tuple[int, ...]:
        """Return the tokens of each response of a group."""
        return _lengths(self, uid)


@lru_cache(maxsize=100_000)
def _lengths(lengths: Lengths, uid: str) -> tuple[int, ...]:
    # The hashed uid seeds a stream of its own, so the lengths do not depend on the order of calls.
    seed = int.from_bytes(hashlib.blake2b(f"{lengths.seed}:{uid}".encode(), digest_size=8).digest(), "little")
    drawn = lengths.median * np.exp(lengths.sigma * np.random.default_rng(seed).standard_normal(lengths.group_size))
    return tuple(np.clip(np.rint(drawn), 1, lengths.longest).astype(int).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Durations of the units of work, seconds.

    Attributes:
        token_s: Time between two tokens of one response in an engine whose slots are full.
        slots: Responses that one rollout worker decodes at once.
        teacher_token_s: Time of one teacher replica for a token. It scores one group at a time.
        verdict_s: Time of one verifier process for a group.
        learner_token_s: Time of the whole learner for a response token, forward and backward.
        update_s: Time of the optimizer step and of publishing the weights.
        weights_s: Time until all samplers have loaded new weights.
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
    """Workers of each pool. `teacher` is 0 if the objective uses no teacher."""

    rollout: int
    teacher: int
    verifier: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWork:
    """Work of each pool in a run, as the seconds that the whole pool needs for it.

    Attributes:
        longest_response: Seconds of the longest response alone.
    """

    rollout: float
    teacher: float
    verifier: float
    learner: float
    longest_response: float

    @property
    def bound(self) -> float:
        """Lower bound of any schedule: the time of the pool with the most work, if all other work is hidden."""
        return max(self.most, self.longest_response)

    @property
    def most(self) -> float:
        """Work of the pool with the most work."""
        return max(self.rollout, self.teacher, self.verifier, self.learner)

    @property
    def bottleneck(self) -> str:
        """The pool with the most work."""
        return max(("rollout", "teacher", "verifier", "learner"), key=lambda pool: getattr(self, pool))


def work_of(
    groups: Iterable[Sequence[int]], speeds: Speeds, sizes: PoolSizes, *, updates: int, passes: int = 1
) -> PoolWork:
    """Return the work of groups with the given response lengths.

    Args:
        groups: Response lengths of each group, in tokens.
        speeds: Speeds of the pools.
        sizes: Workers of the pools.
        updates: Optimizer updates, over all passes.
        passes: Number of times that the learner trains on each group.
    """
    lengths = np.array([sum(group) for group in groups], dtype=float)
    longest = max((max(group) for group in groups), default=0)
    tokens, num_groups = float(lengths.sum()), len(lengths)
    return PoolWork(
        rollout=tokens * speeds.token_s / (sizes.rollout * speeds.slots),
        teacher=tokens * speeds.teacher_token_s / sizes.teacher if sizes.teacher else 0.0,
        verifier=num_groups * speeds.verdict_s / sizes.verifier,
        learner=passes * tokens * speeds.learner_token_s + updates * speeds.update_s,
        longest_response=longest * speeds.token_s,
    )
