"""Event loop with a virtual clock: coroutines that sleep for hours finish in milliseconds.

Whenever every coroutine waits, the clock jumps to the next timer. Only timers advance it: a coroutine that waits for a
socket, a thread or a process would wait forever and raises `StuckError` instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from rlad.errors import RladError

T = TypeVar("T")


class StuckError(RladError):
    """Deadlock in virtual time: every coroutine waits, and no timer is pending."""


class _JumpingSelector(selectors.BaseSelector):
    """Selector that never blocks: it advances the clock by the timeout that it was to wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._files = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("virtual time is stuck: every coroutine waits, and no timer is pending")
        self.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._files.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._files.unregister(fileobj)

    def get_map(self) -> Any:
        return self._files.get_map()

    def close(self) -> None:
        self._files.close()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Event loop whose `time()` is virtual, in seconds since the loop was created."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now


def run_in_virtual_time(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a virtual clock and return its result.

    Raises:
        StuckError: the coroutine waits for something that no timer causes.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
