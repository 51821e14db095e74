"""Activity of a teacher replica: groups in progress per client, client quotas and statistics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from rlad.errors import QuotaError


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStats:
    """Statistics of a teacher since its replicas started, summed over the replicas.

    Attributes:
        busy_s: Time during which a replica had at least one group, in seconds.
        num_groups: Number of scored groups, including cached ones.
        num_tokens: Number of scored tokens, including cached ones.
        refused_groups: Number of requests refused because of the client's quota. Every retry counts.
        cache_hits: Number of responses found in the cache.
        cache_misses: Number of responses not found in the cache.
        ongoing: Number of groups that replicas are scoring or holding now, by client.
    """

    busy_s: float = 0.0
    num_groups: int = 0
    num_tokens: int = 0
    refused_groups: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    ongoing: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: TeacherStats) -> TeacherStats:
        return TeacherStats(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    @property
    def ongoing_groups(self) -> int:
        """Number of ongoing groups of all clients."""
        return self.ongoing.total()


class Activity:
    """Counter of groups, tokens and busy time of one replica. All methods must be called from one event loop.

    Args:
        max_groups_per_client: Maximum number of groups in progress per client; None means unlimited. Requests above the
            quota are refused and not queued: queued ones would take room from other clients.
        clock: Clock in seconds.
    """

    def __init__(self, *, max_groups_per_client: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._max_groups_per_client = max_groups_per_client
        self._ongoing: Counter[str] = Counter()
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._groups = 0
        self._tokens = 0
        self._refused = 0

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """Count a group of a client as ongoing for the length of the block.

        Raises:
            QuotaError: The client has reached its quota.
        """
        if self._max_groups_per_client is not None and self._ongoing[client] >= self._max_groups_per_client:
            self._refused += 1
            raise QuotaError(
                f"client {client!r} has reached its quota of {self._max_groups_per_client} groups in progress per "
                "replica; retry later"
            )
        if not self._ongoing:
            self._busy_since = self._clock()
        self._ongoing[client] += 1
        try:
            yield
        finally:
            self._ongoing[client] -= 1
            if not self._ongoing[client]:
                del self._ongoing[client]
            if not self._ongoing:
                self._busy_s += self._clock() - self._busy_since

    def count(self, num_tokens: int) -> None:
        """Count one scored group."""
        self._groups += 1
        self._tokens += num_tokens

    def stats(self, *, cache_hits: int, cache_misses: int) -> TeacherStats:
        """Return the statistics so far, with the counts of the cache."""
        return TeacherStats(
            busy_s=self._busy_s + (self._clock() - self._busy_since if self._ongoing else 0.0),
            num_groups=self._groups,
            num_tokens=self._tokens,
            refused_groups=self._refused,
            cache_hits=cache_hits,
            cache_misses=cache_misses,
            ongoing=Counter(self._ongoing),
        )
