"""Heartbeat of a run's driver: a file in the run directory that a thread of the driver touches.

Its age shows from any machine whether the driver runs. On the driver's own machine it names the process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from actors.health.node_watch import ProcessId
from pipelines.run.directory import RunDirectory
from rlad.config import FailureConfig
from rlad.integrity.durable import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverHeartbeat:
    """Last heartbeat of a driver.

    Attributes:
        process: The driver, on the host of this name.
        late_after_s: Age at which the driver counts as stopped or dead, seconds.
        age_s: Seconds since the heartbeat.
    """

    process: ProcessId
    late_after_s: float
    age_s: float

    @property
    def is_late(self) -> bool:
        """Whether the driver is stopped or dead."""
        return self.age_s > self.late_after_s

    @property
    def is_here(self) -> bool:
        """Whether the driver runs on this machine."""
        return self.process.node == socket.gethostname()


@contextmanager
def beating(run: RunDirectory, failures: FailureConfig) -> Iterator[None]:
    """Show in the run directory, for the duration of the block, that this process runs."""
    process = ProcessId.of(os.getpid(), node=socket.gethostname())
    late_after_s = failures.heartbeat_s * failures.missed_heartbeats
    write_atomically(run.heartbeat, json.dumps({**asdict(process), "late_after_s": late_after_s}) + "\n")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(failures.heartbeat_s):
            try:
                os.utime(run.heartbeat)
            except OSError as error:  # the storage may answer again
                logger.warning("heartbeat=not_written error=%s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(failures.heartbeat_s)
        run.heartbeat.unlink(missing_ok=True)


def read_heartbeat(run: RunDirectory) -> DriverHeartbeat | None:
    """Return the last heartbeat of a run's driver; None if no driver has begun, or the last one has ended."""
    try:
        fields = json.loads(run.heartbeat.read_text(encoding="utf-8"))
        age_s = max(0.0, time.time() - run.heartbeat.stat().st_mtime)
        return DriverHeartbeat(late_after_s=fields.pop("late_after_s"), age_s=age_s, process=ProcessId(**fields))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
