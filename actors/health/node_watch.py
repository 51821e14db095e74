"""Watch over processes of one node: whether each exists and may run, and their end by SIGKILL.

The operating system tells whether a process is stopped. The process itself is not asked: it may be busy in a long call
that holds the interpreter lock, as while it loads a model or compiles, and is healthy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Self

import psutil

logger = logging.getLogger(__name__)

_PROCESSES = Path("/proc")
# Place of the start time in a process's `stat`, counted from the field after its name.
_START = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process on a node.

    Attributes:
        node: Ray's id of the node, or another name of the machine.
        pid: Process id on the node.
        started: Start of the process on a clock that is never set. A pid that was given again has another one.
    """

    node: str
    pid: int
    started: float

    @classmethod
    def of(cls, pid: int, *, node: str) -> Self:
        """Return the identity of a process of this machine, which has this name.

        Raises:
            psutil.NoSuchProcess: There is no process of this pid.
        """
        return cls(node=node, pid=pid, started=_start_of(pid))


class Sighting(StrEnum):
    """State of a process when a watch looked at it."""

    ALIVE = auto()
    """The process runs or waits for something."""
    STOPPED = auto()
    """The process was stopped (SIGSTOP), or its engine was."""
    GONE = auto()
    """The process has ended."""


class NodeWatch:
    """Looks at processes of its node. A plain class on the driver's node, a Ray actor on other nodes."""

    def look(self, processes: Sequence[tuple[ProcessId, bool]]) -> list[Sighting]:
        """Look at processes.

        Args:
            processes: Processes, each with whether its child processes are an engine.

        Returns:
            What was seen, in order.
        """
        children = _children() if any(has_engine for _, has_engine in processes) else {}
        return [_look(process, children if has_engine else {}) for process, has_engine in processes]

    def kill(self, process: ProcessId) -> None:
        """Kill a process with all processes that it has started. SIGKILL also ends stopped processes."""
        found = _find(process)
        if found is None:
            return
        family = list(_descendants(process.pid, _children()))
        for pid in (process.pid, *family):
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue
        logger.warning("process=%d state=killed children=%s", process.pid, family)


def _look(process: ProcessId, children: Mapping[int, Sequence[int]]) -> Sighting:
    found = _find(process)
    if found is None:
        return Sighting.GONE
    pids = (process.pid, *_descendants(process.pid, children))
    return Sighting.STOPPED if any(_is_stopped(pid) for pid in pids) else Sighting.ALIVE


def _find(process: ProcessId) -> psutil.Process | None:
    """Return the process; None if it has ended, also if it still has to be waited for."""
    try:
        found = psutil.Process(process.pid)
        if _start_of(process.pid) != process.started or found.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return found


def _start_of(pid: int) -> float:
    """Return the start of a process: ticks since the start of the machine, or seconds since the epoch without /proc."""
    if not _PROCESSES.is_dir():
        return float(psutil.Process(pid).create_time())
    try:
        status = (_PROCESSES / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return float(status.rpartition(")")[2].split()[_START])  # a program's name may contain spaces and parentheses


def _is_stopped(pid: int) -> bool:
    try:
        # Not `STATUS_TRACING_STOP`: a debugger or a profiler stops a process only for moments.
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _children() -> dict[int, list[int]]:
    """Return the child processes of every process of this machine, by pid."""
    children: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["pid", "ppid"]):
        children[process.info["ppid"]].append(process.info["pid"])
    return children


def _descendants(pid: int, children: Mapping[int, Sequence[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _descendants(child, children)
