"""Execution of scheduled runs. `RunLauncher` is the interface; `ChildProcess` starts `rlad` on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pipelines
from actors.health.node_watch import NodeWatch, ProcessId, Sighting
from pipelines.run.status import STOPPED_EXIT_CODE
from rlad.errors import ScheduleError

_CHILD_MODULE = "pipelines.schedules.child_process"
_ROOT = Path(pipelines.__file__).parents[1]
# Part of a log, from its end, that is searched for the reason of a failure.
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One `rlad` command: a run, or the evaluation of one model.

    Attributes:
        name: Name of the command, unique within the schedule's directory: the run id, or that of an evaluation.
        output: Directory that the command writes.
        arguments: Arguments of the command `rlad`.
        working_dir: Directory that relative paths in the configuration start from.
        log: File that standard output and standard error are appended to.
    """

    name: str
    output: Path
    arguments: tuple[str, ...]
    working_dir: Path
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExit:
    """End of a command.

    Attributes:
        status: Exit status; negative for a signal.
        reason: Error line of a failed command; None after success.
    """

    status: int
    reason: str | None


class RunningRun(Protocol):
    """A command that was started."""

    @property
    def job(self) -> str | None:
        """Id by which another ticker adopts the command; None if the command ends with its ticker."""

    def wait(self, timeout_s: float) -> RunExit | None:
        """Return the command's end, or None if it still runs after `timeout_s`."""

    def is_stopped(self) -> bool:
        """Return whether the command's process is stopped (SIGSTOP), so that it neither works nor ends."""

    def stop(self, grace_s: float) -> None:
        """Ask the command to end, and kill it after `grace_s`. It has ended when this method returns."""


class RunLauncher(Protocol):
    """Starts commands."""

    def start(self, request: RunRequest) -> RunningRun: ...

    def adopt(self, request: RunRequest, job: str) -> RunningRun:
        """Return a command that another ticker started. `wait` reports if it has ended or is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """Launcher that starts a process of this machine, in a process group of its own.

    Attributes:
        command: Command that the request's arguments are appended to.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "pipelines")

    def start(self, request: RunRequest) -> RunningRun:
        request.log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", _CHILD_MODULE, str(os.getpid()), *self.command, *request.arguments]
        with request.log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=request.working_dir,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Child(process, request.log, start)

    def adopt(self, request: RunRequest, job: str) -> RunningRun:
        raise ScheduleError(f"{request.name} is job {job} of a cluster: set launcher.kind to ray_job to continue it")


class _Child:
    job = None

    def __init__(self, process: subprocess.Popen[bytes], log: Path, log_start: int) -> None:
        self._process, self._log, self._log_start = process, log, log_start
        self._id = ProcessId.of(process.pid, node="")

    def wait(self, timeout_s: float) -> RunExit | None:
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        if status == STOPPED_EXIT_CODE:
            return RunExit(status=status, reason=last_line_with("stopped:", self._log, self._log_start))
        return RunExit(status=status, reason=None if status == 0 else self._failure_reason(status))

    def is_stopped(self) -> bool:
        return NodeWatch().look([(self._id, False)]) == [Sighting.STOPPED]

    def stop(self, grace_s: float) -> None:
        # To the command only: the processes of its local cluster must live until its checkpoint is written.
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            NodeWatch().kill(self._id)
            self._signal(signal.SIGKILL)  # includes processes that the command left in its group
            self._process.wait()  # unlimited wait: the kernel ends a killed process

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _failure_reason(self, status: int) -> str:
        cause = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        last = last_line_with("error:", self._log, self._log_start)
        return f"{cause}: {last}" if last else cause


def last_line_with(word: str, log: Path, start: int = 0) -> str | None:
    """Return the log's last line with `word`, or its last line if none has it. `start` is an offset in bytes."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    found = [line for line in lines if word in line.lower()] or lines
    return found[-1] if found else None
