"""A run under supervision: `rlad run --max-restarts N` starts the driver again when it dies.

The driver is a child process, which the kernel kills together with this one. A restarted driver continues the run from
its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Self

from pipelines.run.directory import RunDirectory
from pipelines.run.status import STOPPED_EXIT_CODES, RunStatus, read_status

logger = logging.getLogger(__name__)

_CHILD_MODULE = "pipelines.schedules.child_process"
_RESUME = "--resume"
# Pause before a restart: 1 s, then twice as long each time, but not longer than this.
_MAX_PAUSE_S = 60.0


def supervise(command: Sequence[str], run: RunDirectory, *, max_restarts: int) -> int:
    """Run a command, and start it again with `--resume` when it dies or its run fails. Return its exit status.

    A run that was stopped on request is not started again, and neither is one that was refused before it began: its
    configuration has to be corrected.

    Args:
        command: Command of the driver.
        run: The run.
        max_restarts: Largest number of restarts.
    """
    with _Child(command) as child:
        return _run_until_over(child, run, max_restarts)


def _run_until_over(child: _Child, run: RunDirectory, max_restarts: int) -> int:
    restarts = 0
    while True:
        began = time.time()
        status = child.run()
        is_over = status == 0 or status in STOPPED_EXIT_CODES or child.is_stopping
        if is_over or restarts == max_restarts or not _may_succeed(status, run, began):
            return status
        pause_s = min(2.0**restarts, _MAX_PAUSE_S)
        restarts += 1
        logger.warning(
            "driver=restarted status=%d restarts_left=%d pause_s=%g", status, max_restarts - restarts, pause_s
        )
        time.sleep(pause_s)
        if _RESUME not in child.command:
            child.command.append(_RESUME)


def _may_succeed(status: int, run: RunDirectory, began: float) -> bool:
    """Return whether another attempt may succeed: a signal ended the driver, or the run had begun when it failed."""
    if status > 128:
        return True
    recorded = read_status(run)
    return recorded is not None and recorded.status is not RunStatus.FINISHED and recorded.updated_at >= began


class _Child:
    """The driver's process. SIGTERM and SIGINT are passed on to it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.is_stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self) -> int:
        """Run the command to its end. Return its exit status, 128 plus the number of a signal that ended it."""
        if self.is_stopping:
            return 128 + signal.SIGTERM
        guard = [sys.executable, "-m", _CHILD_MODULE, str(os.getpid())]
        self._process = subprocess.Popen([*guard, *self.command], start_new_session=True)
        status = self._process.wait()  # unlimited wait: the run decides how long it takes
        return status if status >= 0 else 128 - status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
