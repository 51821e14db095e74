"""Clean shutdown: SIGTERM and SIGINT set an event, and the process waits until the work has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.2


def run_until_signalled(work: Callable[[], T], stop: threading.Event) -> T:
    """Run `work` in a thread and return its result. SIGTERM and SIGINT set `stop`; the work is expected to return then.

    The signal handler does not set the event itself, because it may interrupt code that holds the event's lock. It
    records the signal, and the main thread polls. Blocking the signals instead would not cover threads that libraries
    have already started.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            errors.append(error)

    received: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    try:
        thread = threading.Thread(target=target, name="work")
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            if received:
                stop.set()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if errors:
        raise errors[0]
    return results[0]
