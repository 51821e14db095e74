"""Progress of reading and encoding prompts, shown on a terminal once it takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

_SHOWN_AFTER_S = 2.0
_CHECKED_EVERY = 256


@contextmanager
def slow_progress(
    label: str, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yield a function to call for each row or prompt.

    Args:
        label: What is done, for example `reading data/train.parquet`.
        console: Console to show it on; default: standard error.
        clock: Function that returns seconds.
    """
    console = console or Console(stderr=True)
    started, count = clock(), 0
    status: Status | None = None

    def advance() -> None:
        nonlocal count, status
        count += 1
        if count % _CHECKED_EVERY or not console.is_terminal or clock() - started < _SHOWN_AFTER_S:
            return
        if status is None:
            status = console.status("")
            status.start()
        status.update(f"{label}: {count}")

    try:
        yield advance
    finally:
        if status is not None:
            status.stop()
