"""Collection of facts about this machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import psutil

from pipelines.doctor.facts import Gpu, Machine, Sandbox, SharedMemory
from rlad.sandbox.probe import probe_sandbox

_GIB = 1 << 30
_SHARED_MEMORY = Path("/dev/shm")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_QUERY = ("--query-gpu=driver_version,name,memory.total", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S = 30.0


def collect_machine(shared_memory: Path = _SHARED_MEMORY) -> Machine:
    """Return the facts about this machine. Takes less than a second, or a few with GPUs."""
    driver, gpus = _gpus()
    return Machine(
        python=platform.python_version(),
        cpus=psutil.cpu_count() or 1,
        memory_gib=psutil.virtual_memory().total / _GIB,
        driver=driver,
        gpus=gpus,
        shared_memory=_memory_at(shared_memory),
        compilers=tuple(name for name in ("gcc", "g++") if shutil.which(name)),
    )


def collect_sandbox() -> Sandbox:
    """Return the isolation of programs on this machine."""
    report = probe_sandbox()
    problems = tuple(check.detail for check in report.checks if check.status != "ok")
    return Sandbox(isolation=report.level, problems=problems)


def parse_gpus(text: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """Return the driver's version and the GPUs from the output of `nvidia-smi`: a line with both for each GPU."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    found = tuple(Gpu(name=name, memory_gib=int(memory) / 1024) for _, name, memory in rows)
    return (rows[0][0] if rows else None), found


def _gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            answer = subprocess.run(
                [program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return _driver_from_kernel(), ()
        if answer.returncode == 0:
            return parse_gpus(answer.stdout)
    return _driver_from_kernel(), ()


def _driver_from_kernel() -> str | None:
    if not _DRIVER_FILE.exists():
        return None
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _DRIVER_FILE.read_text())
    return found[1] if found else None


def _memory_at(path: Path) -> SharedMemory:
    if not path.is_dir():
        return SharedMemory(path=str(path), total_gib=0.0, free_gib=0.0, is_writable=False)
    stats = os.statvfs(path)
    return SharedMemory(
        path=str(path),
        total_gib=stats.f_blocks * stats.f_frsize / _GIB,
        free_gib=stats.f_bavail * stats.f_frsize / _GIB,
        is_writable=os.access(path, os.W_OK),
    )
