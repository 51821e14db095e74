"""Locks of downloads: one process of a node downloads a model, the others wait for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in a folder. A folder that cannot be written needs no lock, since nothing is added to it."""
    lock: FileLock | None = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        assert lock is not None
        lock.acquire()  # unlimited wait: a download may take hours, and the death of its process releases the lock
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
