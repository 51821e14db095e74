"""Ending in order when told to: SIGTERM and SIGINT set an event that ticks look at, and this process waits for them to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 0.2


def until_told(work: Callable[[], T], stop: threading.Event) -> T:
    """Do work in a thread of its own; a signal sets `stop`, and the work ends when it has seen to it.

    A handler could not set the event: it would run in the midst of whatever holds the event's lock. So the signals are blocked and fetched.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # handed to the caller as it is
            errors.append(error)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        thread = threading.Thread(target=do, name="work")
        thread.start()
        while thread.is_alive():
            if signal.sigtimedwait(_SIGNALS, _LOOK_S) is not None:
                stop.set()
        thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if errors:
        raise errors[0]
    return results[0]
