"""Delivery of figures to a tracker by a thread with a bounded queue: the run never waits for a tracker."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.monitoring.trackers.tracker import Tracker

logger = logging.getLogger(__name__)

# Calls that a tracker may be behind: hours of steps, and less than a MiB.
_MAX_QUEUED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryCounts:
    """Calls of `log` by what became of them.

    Attributes:
        delivered: The tracker has taken them.
        dropped: The queue was full.
        failed: The tracker raised an error.
        unsent: They were in the queue when the run ended.
    """

    delivered: int
    dropped: int
    failed: int
    unsent: int


class TrackerDelivery:
    """Delivers figures to one tracker. Its methods raise no error of the tracker, and only `close` waits."""

    def __init__(self, name: str, tracker: Tracker, *, max_queued: int = _MAX_QUEUED) -> None:
        """
        Args:
            name: Name of the tracker, for messages.
            tracker: The tracker; only the delivery's thread calls it.
            max_queued: Maximum number of calls that the tracker may be behind.
        """
        self.name = name
        self._tracker = tracker
        self._queue: queue.Queue[tuple[int, dict[str, float]]] = queue.Queue(max_queued)
        self._is_closing = threading.Event()
        self._delivered = self._dropped = self._failed = 0
        self._thread = threading.Thread(target=self._deliver, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> DeliveryCounts:
        """Counts so far."""
        return DeliveryCounts(
            delivered=self._delivered, dropped=self._dropped, failed=self._failed, unsent=self._queue.qsize()
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue figures of a step, or drop and count them if the tracker is too far behind."""
        try:
            self._queue.put_nowait((step, dict(values)))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning("tracker=%s state=behind queued=%d (logged once)", self.name, self._queue.maxsize)

    def begin_close(self) -> None:
        """Let the thread finish the queue and close the tracker."""
        self._is_closing.set()

    def finish_close(self, deadline: float) -> None:
        """Wait for the thread, and report what was not delivered.

        Args:
            deadline: End of the wait on the monotonic clock, seconds.
        """
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        counts = self.counts
        if self._thread.is_alive() or counts.dropped or counts.failed or counts.unsent:
            logger.warning(
                "tracker=%s state=incomplete delivered=%d dropped=%d failed=%d unsent=%d",
                self.name,
                counts.delivered,
                counts.dropped,
                counts.failed,
                counts.unsent,
            )

    def _deliver(self) -> None:
        while True:
            try:
                step, values = self._queue.get(timeout=0.2)
            except queue.Empty:
                if self._is_closing.is_set():
                    break
                continue
            self._log(step, values)
        try:
            self._tracker.close()
        except Exception as error:  # noqa: BLE001 - a tracker's library may raise anything, and the run is over
            logger.warning("tracker=%s state=not_closed reason=%s", self.name, error)

    def _log(self, step: int, values: dict[str, float]) -> None:
        try:
            self._tracker.log(step, values)
        except Exception as error:  # noqa: BLE001 - a tracker's library may raise anything, and must not end the run
            self._failed += 1
            if self._failed == 1:
                logger.warning("tracker=%s state=failing step=%d reason=%s (logged once)", self.name, step, error)
        else:
            self._delivered += 1
