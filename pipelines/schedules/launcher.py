"""How a scheduled run is executed. `RunLauncher` is the seam: a child process here, and what else can start, watch and end a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pipelines

_CHILD_MODULE = "pipelines.schedules.child_process"
_ROOT = Path(pipelines.__file__).parents[1]
# The end of a log that the reason of a failure is looked for in.
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run, or the evaluation of one model, to be executed to its end.

    Attributes:
        arguments: of the command `rlad`.
        working_dir: what relative paths in the configuration are seen from.
        log: file that everything it prints is added to.
    """

    arguments: tuple[str, ...]
    working_dir: Path
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExit:
    """How it ended: its status, and of a failure the line that says why."""

    status: int
    reason: str | None


class RunningRun(Protocol):
    """A run that was started."""

    def wait(self, timeout_s: float) -> RunExit | None:
        """How it ended; None if it has not within `timeout_s`."""

    def stop(self, grace_s: float) -> None:
        """Ask it to end, and end it after `grace_s`. It has ended when this returns."""


class RunLauncher(Protocol):
    """Starts runs."""

    def start(self, request: RunRequest) -> RunningRun: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """Starts a run as a process of this machine, in a process group of its own.

    Attributes:
        command: that the request's arguments follow.
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


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, log_start: int) -> None:
        self._process, self._log, self._log_start = process, log, log_start

    def wait(self, timeout_s: float) -> RunExit | None:
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return RunExit(status=status, reason=None if status == 0 else self._why(status))

    def stop(self, grace_s: float) -> None:
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)  # also whatever it started and left
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _why(self, status: int) -> str:
        told = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        last = last_error_line(self._log, self._log_start)
        return f"{told}: {last}" if last else told


def last_error_line(log: Path, start: int = 0) -> str | None:
    """The last line with `error:` of what a run printed, else its last line."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    found = [line for line in lines if "error:" in line.lower()] or lines
    return found[-1] if found else None
