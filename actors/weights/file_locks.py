"""Locks on files between the processes of a node. The kernel drops the locks of a process that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlad.errors import DeadlineError

# Deadline for a lock. Its holder writes one model to memory, which takes seconds.
_LOCK_TIMEOUT_S = 300.0
# Pauses between two attempts to lock.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


@contextmanager
def locked_at_once(path: Path) -> Iterator[bool]:
    """Try to lock a file exclusively until the end of the block. Yield whether that succeeded."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield lock_at_once(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, kind: int, path: Path) -> None:
    """Lock an open file, and wait while other processes have a lock on it that excludes this one.

    Raises:
        DeadlineError: Another process has held its lock too long. The kernel drops the locks of processes that end.
    """
    deadline, pause_s = time.monotonic() + _LOCK_TIMEOUT_S, _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{path} was locked by another process for {_LOCK_TIMEOUT_S:g} s: a worker of this node hangs "
                    "while it writes the weights"
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def lock_at_once(descriptor: int) -> bool:
    """Lock an open file exclusively unless another process has a lock on it. Return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_open_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the file at `path`, which may have been replaced since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file exclusively until the end of the block. Creates the file, and waits like `lock`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lock(descriptor, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)
