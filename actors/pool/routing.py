"""Which worker of a pool gets the next piece of work, and when. Bookkeeping alone, so that the simulator routes by the same rules as a pool of actors."""

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
    """The worker with the least outstanding cost, the first of equals; None when there is no worker."""
    return min(outstanding, key=outstanding.__getitem__, default=None)


def queue_capacity(config: RolloutConfig) -> int:
    """Response tokens, counted at their budget, up to which a worker is given groups.

    What waits in the pool goes to whoever is free first, so an engine gets no more than keeps it full. That is several times what it decodes at once: a group
    counts whole until its longest response ends, when most of the others have long left their places. At four times the simulator finds no time lost
    (99th percentile of the lengths at ten times the median, groups of 8), at twice a quarter of it.
    """
    return max(4 * config.max_sequences, config.max_sequences + 4 * config.group_size) * config.max_response_tokens


class Router:
    """Gives work to the worker with the least outstanding cost that has room for it; work that finds no room waits here.

    Work that waits in an engine is bound to it although another may be free first; work that waits here is not. So a worker is given what keeps it busy
    and a little more. All methods belong to one event loop.
    """

    def __init__(self, *, capacity: int | None = None) -> None:
        """
        Args:
            capacity: outstanding cost up to which a worker is given more work; an idle one takes any. None: no limit.
        """
        self._capacity = capacity
        self._outstanding: dict[str, int] = {}
        self._waiting: list[
            tuple[int, int, int, asyncio.Future[str]]
        ] = []  # a heap of (priority, order of arrival, cost, who waits)
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        """Workers that may get work."""
        return len(self._outstanding)

    def outstanding(self, name: str) -> int:
        """Cost of the work that a worker has."""
        return self._outstanding[name]

    def admit(self, name: str) -> None:
        """A worker that may get work from now on."""
        self._outstanding[name] = 0
        self._hand_out()

    def remove(self, name: str) -> None:
        """A worker that gets no more work. What it has may still be released."""
        self._outstanding.pop(name, None)

    def enqueue(self, cost: int, *, priority: int = 0) -> asyncio.Future[str]:
        """Ask for a worker. The cost is outstanding there as soon as the future has a name; whoever got one gives it back with `release`.

        Args:
            cost: of the work, in the unit of the capacity.
            priority: the lowest is served first, and of equals who came first.
        """
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), cost, future))
        self._hand_out()
        return future

    def release(self, name: str, cost: int) -> None:
        """Work has ended, however it did."""
        if name in self._outstanding:
            self._outstanding[name] -= cost
            self._hand_out()

    def fail(self, error: Exception) -> None:
        """Nobody who waits will get a worker."""
        for *_, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def _hand_out(self) -> None:
        while self._waiting:
            *_, cost, future = self._waiting[0]
            if not future.done():  # else whoever asked has given up
                chosen = least_loaded(self._outstanding)
                if chosen is None or not self._has_room(chosen, cost):
                    return
                self._outstanding[chosen] += cost
                future.set_result(chosen)
            heapq.heappop(self._waiting)

    def _has_room(self, name: str, cost: int) -> bool:
        outstanding = self._outstanding[name]
        return self._capacity is None or outstanding == 0 or outstanding + cost <= self._capacity
