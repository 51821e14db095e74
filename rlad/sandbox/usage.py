"""Resources that all processes of a sandbox use together, read by the caller from `/proc`.

The kernel's limits count one process, or one user. A program with several processes, or one that shares its user with
others, is measured here and killed when it exceeds a limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlad.sandbox.limits import MIB, SandboxLimits


@dataclass(slots=True)
class _Spent:
    """CPU time of the processes that were seen, in seconds."""

    by_process: dict[tuple[int, float], float]

    def total(self) -> float:
        return sum(self.by_process.values())


class UsageMonitor:
    """Usage of a sandbox's programs. Its own processes do not count."""

    def __init__(self, pid: int, directory: Path, limits: SandboxLimits) -> None:
        """
        Args:
            pid: The sandbox's process.
            directory: Directory that contains the programs' files.
            limits: Limits of a program.
        """
        self._pid, self._directory, self._limits = pid, directory, limits
        self._spent = _Spent({})

    def exceeded(self, barriers: tuple[str, ...]) -> str | None:
        """Return the limit that a program exceeds: processes, memory, CPU time or files; None if it exceeds none.

        Args:
            barriers: Active barriers. What a barrier limits already is not measured.
        """
        limits = self._limits
        for parent in _children(self._pid):
            processes = [process for child in _children(parent.pid) for process in (child, *_descendants(child))]
            if not processes:
                continue
            if "process_limit" not in barriers and _num_threads(processes) > limits.processes:
                return "processes and threads"
            if len(processes) > 1:
                if _memory(processes) > limits.memory_mib * MIB:
                    return "memory"
                if self._cpu_s(processes) > limits.cpu_s:
                    return "CPU time"
            if "limited_files" not in barriers and _files(self._directory, processes) > limits.disk_mib * MIB:
                return "files"
        return None

    def kill(self) -> None:
        """Kill all processes, the youngest first, so that none is left without a parent."""
        with contextlib.suppress(psutil.Error):
            for process in reversed(list(_descendants(psutil.Process(self._pid)))):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)

    def _cpu_s(self, processes: list[psutil.Process]) -> float:
        """Return the CPU time of processes and of those that they waited for, with that of processes that vanished."""
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                waited_for = times.children_user + times.children_system
                self._spent.by_process[process.pid, process.create_time()] = times.user + times.system + waited_for
        return self._spent.total()


def _children(pid: int) -> list[psutil.Process]:
    """Return the children of a process. The kernel lists them by thread; the list of all processes is long."""
    pids: list[int] = []
    try:
        with os.scandir(f"/proc/{pid}/task") as tasks:
            for task in tasks:
                pids += map(int, Path(task.path, "children").read_text().split())
    except FileNotFoundError:
        if Path("/proc/self/task", str(os.getpid()), "children").exists():
            return []  # the process has ended
        with contextlib.suppress(psutil.Error):
            return list(psutil.Process(pid).children())
    except OSError:
        return []
    found = []
    for child in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(child))
    return found


def _descendants(process: psutil.Process) -> Iterator[psutil.Process]:
    for child in _children(process.pid):
        yield child
        yield from _descendants(child)


def _num_threads(processes: list[psutil.Process]) -> int:
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            count += process.num_threads()
    return count


def _memory(processes: list[psutil.Process]) -> int:
    """Return the memory of processes in bytes, with shared pages counted once if the kernel tells."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            try:
                total += process.memory_full_info().pss
            except psutil.AccessDenied:
                total += process.memory_info().rss
    return total


def _files(directory: Path, processes: list[psutil.Process]) -> int:
    """Return the size of all files in a directory, and of those that processes hold open but have deleted."""
    sizes: dict[tuple[int, int], int] = {}

    def add(status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            sizes[status.st_dev, status.st_ino] = status.st_blocks * 512

    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                add(os.lstat(os.path.join(root, name)))  # noqa: PTH118
    for process in processes:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{process.pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if (status := entry.stat()).st_nlink == 0:
                        add(status)
    return sum(sizes.values())
