"""Long polls: a caller waits for a condition for a limited time, and asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Longest time until a waiting caller gets an answer, so that it can check its own deadline and other failures.
LONG_POLL_S = 10.0


class LongPolls:
    """Waiting callers of one event loop. `notify` never yields, so a change and its record are one step of the loop."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Let every waiting caller check its condition again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    async def wait_for(self, find: Callable[[], T | None]) -> T | None:
        """Return the first result of `find` that is not None, or None after `LONG_POLL_S`."""
        # The event loop's clock, which is virtual in the simulator; the wall clock would not advance there.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LONG_POLL_S
        while (found := find()) is None and loop.time() < deadline:
            changed = loop.create_future()
            self._waiting.append(changed)
            await asyncio.wait([changed], timeout=deadline - loop.time())
            if not changed.done():
                self._waiting.remove(changed)
        return found
