"""Waiting for the end of processes that are not children of the test."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def still_alive(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for the end of processes, and return those that are alive after the timeout.

    A zombie has ended. The process that adopts an orphan may take its time to reap it, and psutil waits for that.
    """
    alive, deadline = list(processes), time.monotonic() + timeout_s
    while (alive := [each for each in alive if _runs(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
