"""A tracker in a process of its own: its library neither uses the driver's time nor can crash or hang it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.monitoring.trackers.tracker import TrackedRun
from rlad.config.monitoring.trackers import TrackerConfig
from rlad.errors import DeadlineError, EngineError

# Import of the library, and its first contact with a server.
_START_TIMEOUT_S = 180.0
# A library may retry for minutes when its server does not answer.
_LOG_TIMEOUT_S = 300.0
# Upload of what the library has buffered.
_CLOSE_TIMEOUT_S = 60.0
# Starts in a row that may fail.
_MAX_STARTS = 3


class ChildTracker:
    """Tracker in a child process. A process that hangs or ends is started again with the next figures."""

    def __init__(
        self,
        config: TrackerConfig,
        run: TrackedRun,
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "pipelines.monitoring.trackers.child"),
        log_timeout_s: float = _LOG_TIMEOUT_S,
    ) -> None:
        """
        Args:
            config: Configuration of the tracker.
            run: The run.
            command: Program of the child.
            log_timeout_s: Deadline for one call, seconds.
        """
        self._name = config.name
        self._settings = {
            "tracker": config.model_dump(mode="json"),
            "run_id": run.run_id,
            "config": dict(run.config),
            "folder": str(run.folder),
            "tensorboard": str(run.tensorboard),
            "start_step": run.start_step,
        }
        self._command, self._log_timeout_s = command, log_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`.

        Raises:
            EngineError: The tracker raised an error, or its process ended.
            DeadlineError: The process did not answer in time, and was killed.
        """
        process = self._started()
        self._ask(process, {"step": step, "values": dict(values)}, deadline_s=self._log_timeout_s)
        self._failures = 0

    def close(self) -> None:
        """See `Tracker`.

        Raises:
            DeadlineError: The tracker did not finish in time.
        """
        process, self._process = self._process, None
        if process is None:
            return
        _pipe(process.stdin).close()
        try:
            process.wait(timeout=_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise DeadlineError(f"{self._name} did not finish within {_CLOSE_TIMEOUT_S:g} s") from error
        finally:
            _pipe(process.stdout).close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if self._failures >= _MAX_STARTS:
                raise EngineError(f"{self._name} was given up after {_MAX_STARTS} failures in a row")
            # A session of its own: signals to the driver's group do not end the tracker before it has finished.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._ask(self._process, self._settings, deadline_s=_START_TIMEOUT_S)
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], message: Mapping[str, Any], *, deadline_s: float) -> None:
        try:
            pipe = _pipe(process.stdin)
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
            answer = _line(_pipe(process.stdout), deadline_s=deadline_s, who=self._name)
        except (OSError, EngineError, DeadlineError) as error:
            self._give_up(process)
            if isinstance(error, EngineError | DeadlineError):
                raise
            raise EngineError(f"the process of {self._name} ended: {error}. See {self._log_file}") from error
        if answer:
            if process.poll() is not None or message is self._settings:
                self._give_up(process)
            raise EngineError(f"{answer} (output of the library: {self._log_file})")

    @property
    def _log_file(self) -> Path:
        return Path(str(self._settings["folder"])) / f"{self._name}.log"

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        self._failures += 1
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(timeout=_CLOSE_TIMEOUT_S)
    for pipe in (process.stdin, process.stdout):
        try:
            _pipe(pipe).close()
        except BrokenPipeError:
            continue  # the process ended before it had read everything


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the process was started with pipes"
    return pipe


def _line(pipe: IO[bytes], *, deadline_s: float, who: str) -> str:
    """Read a line.

    Raises:
        DeadlineError: There was none in time.
        EngineError: The process has ended.
    """
    deadline, line = time.monotonic() + deadline_s, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise DeadlineError(f"{who} did not answer within {deadline_s:g} s")
        read = os.read(pipe.fileno(), 65536)
        if not read:
            raise EngineError(f"the process of {who} ended")
        line += read
    return line.decode().strip()
