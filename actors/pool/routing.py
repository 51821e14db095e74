"""Routing of work to the workers of a pool.

`Router` only does bookkeeping, so that the simulator and the actor pools route by the same rules.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlad.config import RolloutConfig

__all__ = ["Router", "least_loaded", "queue_capacity"]


def least_loaded(outstanding: Mapping[str, int]) -> str | None:
    """Return the worker with the least outstanding cost, the first among equals; None if there are no workers."""
    return min(outstanding, key=outstanding.__getitem__, default=None)


def queue_capacity(config: RolloutConfig) -> int:
    """Return the outstanding cost up to which a rollout worker gets groups, in budgeted response tokens.

    Work that waits in the pool goes to the first worker with room, so an engine gets only enough to stay full. Enough
    is several times the number of sequences it decodes at once: a group counts in full until its longest response ends,
    when most of its other sequences have long finished. In the simulator, a factor of 4 loses no time and a factor of 2
    loses a quarter (99th percentile of lengths at ten times the median, groups of 8).
    """
    return max(4 * config.max_sequences, config.max_sequences + 4 * config.group_size) * config.max_response_tokens


class Router:
    """Assigns work to the worker with the least outstanding cost that has room, and queues the rest.

    Work that waits in an engine stays there even if another worker becomes free first; work that waits in the router
    does not. A worker therefore gets only slightly more than it needs to stay busy. All methods must be called from one
    event loop.
    """

    def __init__(self, *, capacity: int | None = None) -> None:
        """
        Args:
            capacity: Outstanding cost up to which a worker gets more work; an idle worker takes any work. None means no
                limit.
        """
        self._capacity = capacity
        self._outstanding: dict[str, int] = {}
        # Heap of (priority, order of arrival, cost, future with the worker's name).
        self._waiting: list[tuple[int, int, int, asyncio.Future[str]]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        """Return the number of workers that take work."""
        return len(self._outstanding)

    def outstanding(self, name: str) -> int:
        """Return the cost of the work that a worker has."""
        return self._outstanding[name]

    def admit(self, name: str) -> None:
        """Add a worker that takes work from now on."""
        self._outstanding[name] = 0
        self._assign_waiting()

    def remove(self, name: str) -> None:
        """Remove a worker. It gets no further work; the work it has may still be released."""
        self._outstanding.pop(name, None)

    def enqueue(self, cost: int, *, priority: int = 0) -> asyncio.Future[str]:
        """Request a worker.

        The cost counts as outstanding from the moment the future has a result. The caller then has to call `release`.

        Args:
            cost: Cost of the work, in the unit of the capacity.
            priority: Lower values are served first, equal values in order of arrival.

        Returns:
            Future of the worker's name.
        """
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), cost, future))
        self._assign_waiting()
        return future

    def release(self, name: str, cost: int) -> None:
        """Subtract the cost of work that has ended, successfully or not."""
        if name in self._outstanding:
            self._outstanding[name] -= cost
            self._assign_waiting()

    def fail(self, error: Exception) -> None:
        """Fail all requests that wait for a worker."""
        for *_, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def _assign_waiting(self) -> None:
        while self._waiting:
            *_, cost, future = self._waiting[0]
            if not future.done():  # a done future was cancelled by its caller
                chosen = least_loaded(self._outstanding)
                if chosen is None or not self._has_room(chosen, cost):
                    return
                self._outstanding[chosen] += cost
                future.set_result(chosen)
            heapq.heappop(self._waiting)

    def _has_room(self, name: str, cost: int) -> bool:
        outstanding = self._outstanding[name]
        return self._capacity is None or outstanding == 0 or outstanding + cost <= self._capacity
