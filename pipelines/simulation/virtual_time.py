"""An event loop whose clock jumps to the next thing that happens. Coroutines that sleep for hours run in the time that their bookkeeping takes."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from rlad.errors import RladError

T = TypeVar("T")


class StuckError(RladError):
    """Every coroutine of a simulation waits for another: nothing will ever happen."""


class _JumpingSelector(selectors.BaseSelector):
    """Waits for no file. Asked to wait for so many seconds, it moves the clock on by as many instead."""

    def __init__(self) -> None:
        self.now = 0.0
        self._files = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("the simulation is stuck: everything in it waits for something else")
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
    """`time()` is virtual: seconds since the loop was made. Nothing but timers may be waited for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a clock that jumps.

    Raises:
        StuckError: it waits for something that no timer brings about.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
