"""Actor of the monitor's tests."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess

import ray

from actors.health.processes import announce


@ray.remote(num_cpus=0)
class Sleeper:
    """Actor with a child process. It waits, or holds the interpreter lock, on request."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._child = subprocess.Popen(["sleep", "600"])

    async def pids(self) -> tuple[int, int]:
        return os.getpid(), self._child.pid

    async def number(self) -> int:
        return self._number

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def hold_interpreter_lock(self, seconds: int) -> int:
        ctypes.PyDLL(None).sleep(seconds)  # unlike `CDLL`, it keeps the lock
        return os.getpid()

    async def announce(self, run_id: str) -> int:
        announce(run_id, "rank-0", role="rank")
        return os.getpid()
