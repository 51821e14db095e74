"""Transfers of weights from the learner straight to rollout workers: who asks for one, in which order they are made, and what became of them.

The driver asks, for all workers at once when there is a new version, and for one that joins. The learner takes the requests one after the other, when it
holds the version that is wanted. Pure bookkeeping; the broker lets both sides wait on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequest:
    """Weights that workers are to be given.

    Attributes:
        number: of the request.
        version: of the weights.
        workers: by name.
    """

    number: int
    version: int
    workers: Mapping[str, ActorHandle]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOutcome:
    """What became of a request.

    Attributes:
        state: `sent`, whoever is not among the failures has the weights; `not_sent`, whoever is not is as before and may be asked for again;
            `superseded`, newer weights were asked for before these were sent to anybody.
        failures: why a worker does not have them, by its name.
    """

    state: Literal["sent", "not_sent", "superseded"]
    failures: Mapping[str, str]


class TransferQueue:
    """The requests of a run."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: dict[int, TransferRequest] = {}
        self._outcomes: dict[int, TransferOutcome] = {}
        self._being_sent: int | None = None
        self._newest_asked_for = -1

    def ask(self, version: int, workers: Mapping[str, ActorHandle]) -> int:
        """Ask for a transfer, maybe to nobody. Older versions that nobody sends yet are not wanted any more. Returns the request's number."""
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
        """The first request for the version that the learner holds. It stays the first until it is finished."""
        return next((each for each in self._waiting.values() if each.version == held), None)

    def begin(self, number: int) -> None:
        """From now on the request's workers may have some of the new weights."""
        if number in self._waiting:  # else it was superseded meanwhile, and nobody waits for what becomes of it
            self._being_sent = number

    def is_asked_for(self, version: int) -> bool:
        """Whether the driver has got to this version, if only to a later one."""
        return version <= self._newest_asked_for

    def finish(self, number: int, outcome: TransferOutcome) -> None:
        if self._waiting.pop(number, None) is not None:  # else its end was told before
            self._outcomes[number] = outcome
        if self._being_sent == number:
            self._being_sent = None

    def outcome(self, number: int) -> TransferOutcome | None:
        """Of a finished request, told once."""
        return self._outcomes.pop(number, None)

    def sender_restarted(self) -> None:
        """Whoever was being sent weights has some of the old and some of the new. What waits goes on waiting: the learner will hold that version again."""
        if self._being_sent is not None:
            reason = "the learner was restarted while it sent the weights"
            workers = self._waiting[self._being_sent].workers
            self.finish(self._being_sent, TransferOutcome(state="sent", failures=dict.fromkeys(workers, reason)))
