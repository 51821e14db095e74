"""A run under supervision: `rlad run --max-restarts N` starts the driver again when it dies, and kills one that hangs.

The driver is a child process, which the kernel kills together with this one. A restarted driver continues the run from
its last checkpoint. The driver watches all other processes of the run; this one watches the driver, which is in a
session of its own: a stop in the terminal (Ctrl-Z) does not reach it.
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

from actors.health.node_watch import NodeWatch, ProcessId, Sighting
from pipelines.run.directory import RunDirectory
from pipelines.run.status import STOPPED_EXIT_CODES, RunStatus, read_status
from rlad.config import FailureConfig
from rlad.failures import Action, Event, decide

logger = logging.getLogger(__name__)

_CHILD_MODULE = "pipelines.schedules.child_process"
_RESUME = "--resume"
# Pause before a restart: 1 s, then twice as long each time, but not longer than this.
_MAX_PAUSE_S = 60.0


def supervise(command: Sequence[str], run: RunDirectory, *, max_restarts: int, failures: FailureConfig) -> int:
    """Run a command, and start it again with `--resume` when it dies or its run fails. Return its exit status.

    A driver that is stopped (SIGSTOP) at several heartbeats in a row is killed, and started again like one that died.
    A run that was stopped on request is not started again, and neither is one that was refused before it began: its
    configuration has to be corrected.

    Args:
        command: Command of the driver.
        run: The run.
        max_restarts: Largest number of restarts.
        failures: Heartbeat of the driver, and the number of heartbeats that it may miss.
    """
    with _Child(command, failures) as child:
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


class DriverWatch:
    """Watch over a driver on this machine, which kills it when it hangs."""

    def __init__(self, pid: int, failures: FailureConfig) -> None:
        """
        Args:
            pid: Process id of the driver, which this process has started.
            failures: Number of heartbeats that it may miss.
        """
        self._driver, self._failures, self._missed = ProcessId.of(pid, node=""), failures, 0

    def look(self) -> None:
        """Look at the driver, once a heartbeat. Kill it with its children if it was stopped at too many looks in a row.

        A driver that is busy is never taken for a stopped one.
        """
        if NodeWatch().look([(self._driver, False)]) != [Sighting.STOPPED]:
            self._missed = 0
            return
        self._missed += 1
        budget = self._failures.missed_heartbeats - 1
        if decide(Event.HEARTBEAT_MISSED, happened=self._missed, budget=budget) is Action.REPLACE:
            logger.warning("driver=hung pid=%d missed=%d", self._driver.pid, self._missed)
            NodeWatch().kill(self._driver)


class _Child:
    """The driver's process. SIGTERM and SIGINT are passed on to it."""

    def __init__(self, command: Sequence[str], failures: FailureConfig) -> None:
        self.command, self._failures = list(command), failures
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
        watch = DriverWatch(self._process.pid, self._failures)
        while True:  # the run decides how long it takes
            try:
                status = self._process.wait(self._failures.heartbeat_s)
            except subprocess.TimeoutExpired:
                watch.look()
            else:
                return status if status >= 0 else 128 - status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
