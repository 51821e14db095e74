"""Weight transfers from the learner directly to rollout workers: requests, their order and their outcomes.

The driver requests a transfer to all workers when a new version exists, and one to each worker that joins. The learner
serves the requests one at a time, while it holds the requested version. Pure bookkeeping; the broker lets both sides
wait.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequest:
    """Request to send weights to workers.

    Attributes:
        number: Number of the request.
        version: Requested policy version.
        workers: Receiving workers by name.
    """

    number: int
    version: int
    workers: Mapping[str, ActorHandle]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOutcome:
    """Outcome of a request.

    Attributes:
        state: `sent`: every worker without a failure has the weights. `not_sent`: workers without a failure are
            unchanged and may be requested again. `superseded`: newer weights were requested before these were sent.
        failures: Reason why a worker lacks the weights, by worker name.
    """

    state: Literal["sent", "not_sent", "superseded"]
    failures: Mapping[str, str]


class TransferQueue:
    """Transfer requests of a run."""

    def __init__(self) -> None:
        self._first = time.time_ns()  # no number of an earlier broker's queue is given out again
        self._numbers = itertools.count(self._first)
        self._waiting: dict[int, TransferRequest] = {}
        self._outcomes: dict[int, TransferOutcome] = {}
        self._being_sent: int | None = None
        self._newest_asked_for = -1

    def ask(self, version: int, workers: Mapping[str, ActorHandle]) -> int:
        """Request a transfer, which supersedes waiting requests for older versions. Return its number."""
        number = next(self._numbers)
        self._newest_asked_for = max(self._newest_asked_for, version)
        for older in [each for each in self._waiting.values() if each.version < version]:
            self.finish(older.number, TransferOutcome(state="superseded", failures={}))
        if version < self._newest_asked_for:
            self._outcomes[number] = TransferOutcome(state="superseded", failures={})
        elif workers:
            self._waiting[number] = TransferRequest(number=number, version=version, workers=workers)
        else:
            self._outcomes[number] = TransferOutcome(state="sent", failures={})
        return number

    def next(self, held: int) -> TransferRequest | None:
        """Return the first request for the version that the learner holds. It stays first until it is finished."""
        return next((each for each in self._waiting.values() if each.version == held), None)

    def begin(self, number: int) -> None:
        """Record that sending begins: from now on the request's workers may hold a part of the new weights."""
        if number in self._waiting:  # otherwise it was superseded, and its outcome is not awaited
            self._being_sent = number

    def is_asked_for(self, version: int) -> bool:
        """Return whether the driver has requested this version or a later one."""
        return version <= self._newest_asked_for

    def finish(self, number: int, outcome: TransferOutcome) -> None:
        """Record the outcome of a request, unless it has one already."""
        if self._waiting.pop(number, None) is not None:
            self._outcomes[number] = outcome
        if self._being_sent == number:
            self._being_sent = None

    def is_known(self, number: int) -> bool:
        """Return whether a number was given out by this queue, and not by that of an earlier broker."""
        return number >= self._first

    def outcome(self, number: int) -> TransferOutcome | None:
        """Return the outcome of a finished request, once."""
        return self._outcomes.pop(number, None)

    def sender_restarted(self) -> None:
        """Fail the request that was being sent: its workers hold a mixture of versions. Waiting requests stay."""
        if self._being_sent is not None:
            reason = "the learner was restarted while it sent the weights"
            workers = self._waiting[self._being_sent].workers
            self.finish(self._being_sent, TransferOutcome(state="sent", failures=dict.fromkeys(workers, reason)))
