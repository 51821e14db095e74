"""Holding a schedule's lease: a thread renews it while the work goes on, and says so when it is lost."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipelines.schedules.records import Lease
from pipelines.schedules.store import ScheduleStore
from rlad.errors import LeaseHeldError, LeaseLostError

logger = logging.getLogger(__name__)

# Renewals a lease: two may fail and the third still comes in time.
_RENEWALS = 4
_LOOK_AGAIN_S = 0.5


class HeldLease:
    """A lease that is renewed by a thread of its own.

    Attributes:
        lease: what writes to the store carry.
        lost: set once another ticker has the lease, or may have it since the store did not answer for as long as the lease lasts.
    """

    def __init__(self, store: ScheduleStore, lease: Lease, lease_s: float) -> None:
        self.lease = lease
        self.lost = threading.Event()
        self._store, self._lease_s = store, lease_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{lease.schedule}", daemon=True)

    def __enter__(self) -> HeldLease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def require(self) -> None:
        """Before anything that the store's own fence does not protect, as the registry.

        Raises:
            LeaseLostError: the lease is another's.
        """
        self._store.renew(self.lease, self._lease_s)

    def _renew(self) -> None:
        safe_until = time.monotonic() + self._lease_s
        while not self._ended.wait(self._lease_s / _RENEWALS):
            asked = time.monotonic()
            try:
                self._store.renew(self.lease, self._lease_s)
                safe_until = asked + self._lease_s
            except LeaseLostError as error:
                logger.warning("lease_lost schedule=%s token=%d error=%s", self.lease.schedule, self.lease.token, error)
                self.lost.set()
                return
            except SQLAlchemyError as error:
                reason = error.orig if isinstance(error, DBAPIError) else error
                logger.warning(
                    "lease_not_renewed schedule=%s left_s=%.1f error=%s",
                    self.lease.schedule,
                    safe_until - asked,
                    reason,
                )
                if time.monotonic() > safe_until:
                    self.lost.set()
                    return


@contextmanager
def hold_lease(store: ScheduleStore, name: str, lease_s: float, *, stop: threading.Event) -> Iterator[HeldLease]:
    """Take a schedule's lease and keep it while the block runs.

    A holder that died still has its lease until that runs out: whoever comes then waits, until the lease is renewed (somebody lives, so it is refused) or
    is free. That takes as long as one lease at most.

    Raises:
        LeaseHeldError: another ticker lives.
    """
    lease = _acquire(store, name, lease_s, stop)
    try:
        with HeldLease(store, lease, lease_s) as held:
            yield held
    finally:
        store.release(lease)  # once its heartbeat has ended: a late one would take it again for nobody


def _acquire(store: ScheduleStore, name: str, lease_s: float, stop: threading.Event) -> Lease:
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
    seen = store.schedule(name).lease_expires_at
    while True:
        try:
            return store.acquire(name, owner, lease_s)
        except LeaseHeldError:
            expires_at = store.schedule(name).lease_expires_at
            if expires_at is not None and expires_at != seen:
                raise
            if stop.wait(_LOOK_AGAIN_S):
                raise
