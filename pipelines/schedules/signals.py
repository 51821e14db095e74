"""Ending in order when told to: SIGTERM and SIGINT set an event that ticks look at, and this process waits for them to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 0.2


def run_until_signalled(work: Callable[[], T], stop: threading.Event) -> T:
    """Do work in a thread of its own; a signal sets `stop`, and the work ends when it has seen to it.

    A handler must not set the event: it runs in the midst of whatever holds the event's lock. It only remembers; and blocking the signals instead would not
    keep them from threads that libraries have started before.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # handed to the caller as it is
            errors.append(error)

    told: list[int] = []
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in _SIGNALS}
    try:
        thread = threading.Thread(target=do, name="work")
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
            if told:
                stop.set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if errors:
        raise errors[0]
    return results[0]
