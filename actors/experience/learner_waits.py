"""The part of the broker at which the learner's ranks wait: for weight transfers, for shards, and for their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from actors.experience.batch_shards import EndRequest, StepShards
from actors.experience.long_poll import LongPolls
from actors.experience.transfers import TransferOutcome, TransferQueue, TransferRequest
from actors.messages import WeightsPublication
from rlad.errors import BrokerRestartedError, RunStoppedError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Report of the learner on a step, or on its start or restart (then without metrics).

    Attributes:
        version: Trained steps so far, which is the policy version.
        publications: The published weights, in a list: the receiver takes them out, because every reference to them
            keeps a model in the object store.
        metrics: Metrics of the step.
    """

    version: int
    publications: list[WeightsPublication]
    metrics: dict[str, float]


class LearnerWaits:
    """Base of the broker with the state that both sides wait for.

    Attributes:
        is_restarted: Whether an earlier broker of the same driver has died.
    """

    def __init__(self, *, is_restarted: bool) -> None:
        self.is_restarted, self._is_restored = is_restarted, not is_restarted
        self._steps: dict[int, StepShards] = {}
        self._started: StepReport | None = None
        self._awaited = 0  # newest version that the driver has requested; it has all versions before
        self._has_all_versions = self._is_dismissed = False
        self._stopped: str | None = None
        self._end_request: EndRequest | None = None
        self._ends_at: tuple[int, int] | None = None  # step and shard at which all ranks get the request
        self._newest_claim = (-1, -1)  # step and shard that a rank has got
        self._transfers = TransferQueue()
        self._polls = LongPolls()

    async def ask_transfer(self, version: int, workers: Mapping[str, ActorHandle]) -> int:
        """Request that the learner sends the weights of `version` to `workers`. Return the request's number."""
        number = self._transfers.ask(version, workers)
        self._polls.notify()
        return number

    async def wait_transfer(self, number: int) -> TransferOutcome | None:
        """Wait for the outcome of a transfer request. It is returned once.

        Raises:
            BrokerRestartedError: The request was made to an earlier broker. Make it again.
        """
        if not self._transfers.is_known(number):
            raise BrokerRestartedError("the broker was restarted and lacks the transfer request")
        return await self._wait_for(lambda: self._transfers.outcome(number))

    async def begin_transfer(self, number: int) -> None:
        """Record that the learner begins to send."""
        self._transfers.begin(number)

    async def report_transfer(self, number: int, outcome: TransferOutcome) -> None:
        """Record the outcome of a transfer."""
        self._transfers.finish(number, outcome)
        self._polls.notify()

    async def transfer_or_delivered(self, held: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`; True once the driver has requested it and none waits."""
        self._require_learner()
        return await self._wait_for(
            lambda: (
                self._transfers.next(held)
                or self._transfers.is_asked_for(held)
                or held < self._awaited  # delivered before a restart of the broker
                or self._has_all_versions
                or self._end_request is not None  # the driver may request nothing more
                or None
            )
        )

    async def transfer_or_shard(self, held: int, step: int, index: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`, or return True once shard `index` of `step` can be claimed."""
        self._require_learner()

        def find() -> TransferRequest | bool | None:
            shards = self._steps.get(step)
            can_claim = self._must_end(step, index) or (shards is not None and shards.shard(0, index) is not None)
            return self._transfers.next(held) or can_claim or None

        return await self._wait_for(find)

    async def transfer_or_dismissed(self, held: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`, or return True once the ranks may end."""
        self._require_learner()
        return await self._wait_for(lambda: self._transfers.next(held) or self._is_dismissed or None)

    async def wait_dismissed(self) -> bool | None:
        """Wait until the ranks may end."""
        self._require_learner()
        return await self._wait_for(lambda: self._is_dismissed or None)

    def _must_end(self, step: int, index: int) -> bool:
        """Return whether the ranks end at a shard: all of them at the same one, and never between two updates."""
        if self._end_request is None:
            return False
        if self._ends_at is None:
            is_claimed = (step, index) <= self._newest_claim
            if is_claimed or (step in self._steps and self._steps[step].is_between_updates(index)):
                return False
            self._ends_at = (step, index)
        return self._ends_at == (step, index)

    async def _wait_for(self, find: Callable[[], T | None]) -> T | None:
        def find_unless_stopped() -> T | None:
            self._raise_if_stopped()
            return find()

        return await self._polls.wait_for(find_unless_stopped)

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise RunStoppedError(self._stopped)

    def _require_restored(self) -> None:
        if not self._is_restored:
            raise BrokerRestartedError("the broker was restarted and lacks the groups that the driver holds")

    def _require_learner(self) -> None:
        if self.is_restarted and self._started is None:
            raise BrokerRestartedError("the broker was restarted and lacks the learner's reports")
