"""Lease of a schedule: a thread renews it during a tick and reports its loss.

A second thread watches the first: a database that hangs keeps the renewal from returning, and the lease is lost when
its duration has passed on the monotonic clock. The run then ends, and the ticker does not wait for the database.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipelines.schedules.records import CronHistory, FindDue, Lease, NewTick, Schedule, Tick
from pipelines.schedules.store import ScheduleStore
from rlad.errors import LeaseHeldError, LeaseLostError

logger = logging.getLogger(__name__)

# Renewals per lease duration: two may fail and the third is still in time.
_RENEWALS = 4
_ACQUIRE_POLL_S = 0.5
_JOIN_S = 0.2


class HeldLease:
    """A lease with a thread that renews it.

    Attributes:
        lease: Lease that every write to the store presents.
        opened: Tick that was opened together with the lease; None if no tick was due.
        lost: Set when another ticker holds the lease, or may hold it because no renewal succeeded for a lease duration.
    """

    def __init__(self, store: ScheduleStore, lease: Lease, lease_s: float, opened: Tick | None = None) -> None:
        self.lease, self.opened = lease, opened
        self.lost = threading.Event()
        self._store, self._lease_s = store, lease_s
        self._safe_until = time.monotonic() + lease_s
        self._attempted_at: float | None = None  # start of a renewal that has not returned
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"lease-{lease.schedule}", daemon=True)
            for work in (self._renew, self._watch)
        ]

    def __enter__(self) -> HeldLease:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            while thread.is_alive() and not self.lost.is_set():
                thread.join(_JOIN_S)

    def require(self) -> None:
        """Renew the lease now. Call this before a change that the store does not fence, such as one of the registry.

        Raises:
            LeaseLostError: Another ticker holds the lease.
        """
        self._store.renew(self.lease, self._lease_s)

    def _renew(self) -> None:
        while not self._ended.wait(self._lease_s / _RENEWALS) and not self.lost.is_set():
            self._attempted_at = attempted_at = time.monotonic()
            try:
                self._store.renew(self.lease, self._lease_s)
                self._safe_until = attempted_at + self._lease_s
            except LeaseLostError as error:
                logger.warning("lease_lost schedule=%s token=%d error=%s", self.lease.schedule, self.lease.token, error)
                self.lost.set()
                return
            except SQLAlchemyError as error:
                reason = error.orig if isinstance(error, DBAPIError) else error
                logger.warning(
                    "lease_not_renewed schedule=%s left_s=%.1f error=%s",
                    self.lease.schedule,
                    self._safe_until - attempted_at,
                    reason,
                )
                if time.monotonic() > self._safe_until:
                    self.lost.set()
                    return
            finally:
                self._attempted_at = None

    def _watch(self) -> None:
        """Report the lease as lost when its duration has passed and a renewal still waits for the database.

        If this process was too slow to begin a renewal, the next one finds out whether the lease is lost.
        """
        while not self._ended.wait(max(self._lease_s / 10, self._safe_until - time.monotonic())):
            now, attempted_at = time.monotonic(), self._attempted_at
            if now >= self._safe_until and attempted_at is not None and now - attempted_at >= self._lease_s / 2:
                logger.warning("lease_lost schedule=%s error=not renewed in time", self.lease.schedule)
                self.lost.set()
                return


@contextmanager
def hold_lease(
    store: ScheduleStore, name: str, lease_s: float, *, stop: threading.Event, find_due: FindDue | None = None
) -> Iterator[HeldLease]:
    """Acquire a schedule's lease, open the tick that is due, and renew the lease for the duration of the block.

    If the lease is held, wait until its holder renews it, which proves that the holder is alive, or until it expires.
    The wait is at most one lease duration.

    Raises:
        LeaseHeldError: Another live ticker holds the lease, or `stop` was set while waiting.
    """
    lease, opened = _acquire(store, name, lease_s, stop, find_due or _nothing_due)
    held = HeldLease(store, lease, lease_s, opened)
    try:
        with held:
            yield held
    finally:
        # After the renewing thread has ended: a late renewal would hold the lease again. A lost lease is not released,
        # because the database may hang.
        if not held.lost.is_set():
            store.release(lease)


def _acquire(
    store: ScheduleStore, name: str, lease_s: float, stop: threading.Event, find_due: FindDue
) -> tuple[Lease, Tick | None]:
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
    seen = store.schedule(name).lease_expires_at
    while True:
        try:
            return store.acquire_and_open(name, owner, lease_s, find_due)
        except LeaseHeldError:
            expires_at = store.schedule(name).lease_expires_at
            if expires_at is not None and expires_at != seen:
                raise
            if stop.wait(_ACQUIRE_POLL_S * random.uniform(0.75, 1.25)):
                raise


def _nothing_due(_schedule: Schedule, _history: CronHistory) -> NewTick | None:
    return None
