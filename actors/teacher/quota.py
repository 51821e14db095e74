"""What a replica of a teacher has under way, for whom, and how much of it one client may have."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from rlad.errors import QuotaError


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStats:
    """What a teacher has done since its replicas started, summed over them.

    Attributes:
        busy_s: seconds in which a replica had at least one group.
        num_groups, num_tokens: scored, from the cache or not.
        refused_groups: for their client's quota; one that is tried again counts again.
        cache_hits, cache_misses: responses.
        ongoing: groups that are being scored or waiting in a replica now, by client.
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
        """Of all clients."""
        return self.ongoing.total()


class Activity:
    """Counts groups and tokens, and the time in which there was at least one group. On one event loop only.

    Args:
        max_groups_per_client: that may be under way at once; None sets no bound. A client above it is refused and not made to wait: what waits here
            would take the place of another client's groups.
        clock: seconds.
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
        """Around a client's group.

        Raises:
            QuotaError: the client has as many under way as it may.
        """
        if self._max_groups_per_client is not None and self._ongoing[client] >= self._max_groups_per_client:
            self._refused += 1
            raise QuotaError(
                f"client {client!r} has {self._ongoing[client]} groups under way in this replica, as many as one may: try again later"
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
        self._groups += 1
        self._tokens += num_tokens

    def stats(self, *, cache_hits: int, cache_misses: int) -> TeacherStats:
        return TeacherStats(
            busy_s=self._busy_s + (self._clock() - self._busy_since if self._ongoing else 0.0),
            num_groups=self._groups,
            num_tokens=self._tokens,
            refused_groups=self._refused,
            cache_hits=cache_hits,
            cache_misses=cache_misses,
            ongoing=Counter(self._ongoing),
        )
