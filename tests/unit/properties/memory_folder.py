"""Temporary folders in memory, for tests that write durably very often."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def memory_folder() -> Path:
    """Return a new folder in shared memory, where flushing costs nothing, or on the disk if there is no such place."""
    return Path(tempfile.mkdtemp(prefix="rlad-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
