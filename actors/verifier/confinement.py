"""Confinement of a judge: what a child process that runs verifiers keeps of its parent's environment and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterable
from pathlib import Path

_ALLOWED = """
PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR VIRTUAL_ENV LD_LIBRARY_PATH PYTHONPATH PYTHONHASHSEED PYTHONUTF8
PYTHONIOENCODING PYTHONWARNINGS PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS
NUMEXPR_NUM_THREADS TOKENIZERS_PARALLELISM HF_HOME HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
"""
_ALLOWED_PREFIX = "LC_"
_MIB = 1 << 20


def keep_environment(names: Iterable[str]) -> None:
    """Remove every environment variable that is not known to be harmless.

    Args:
        names: Further variables to keep.
    """
    allowed = {*_ALLOWED.split(), *names}
    kept = {name: value for name, value in os.environ.items() if name in allowed or name.startswith(_ALLOWED_PREFIX)}
    os.environ.clear()
    os.environ.update(kept)  # as copies, apart from the block that the kernel shows in /proc
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])  # env_start and env_end, fields 50 and 51
        if 0 < start < end:
            ctypes.memset(start, 0, end - start)


def limit_memory(memory_mib: int) -> None:
    """Limit the address space of this process to what it has now and `memory_mib` more.

    The limit is a soft one, so that the sandbox's processes can set their own.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mib * _MIB
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
