"""The experience broker: holds finished groups for the learner and keeps the run's ledger.

The driver opens a step with its groups cut into updates (mini-batches) in prompt order, so the update of a group never
depends on when it finished. Groups of the update in training are handed out in batch shards as they arrive, and the
learner accumulates gradient while other groups are still being sampled. Shards are kept until a durable checkpoint
holds
their step: ranks that restart claim the same shards again. If the learner sends its weights directly to workers, the
broker passes on the requests.

The broker holds references and small numbers, never token data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from actors.experience.batch_shards import BatchShard, EndRequest, ShardPolicy, StepShards
from actors.experience.group import ExperienceGroup
from actors.experience.transfers import TransferOutcome, TransferQueue, TransferRequest
from actors.messages import WeightsPublication
from rlad.errors import RladError, RunStoppedError
from rlad.ledger import Ledger

if TYPE_CHECKING:
    from ray.actor import ActorHandle

T = TypeVar("T")

# Longest time until a waiting caller gets an answer, so that it can check its own deadline and other failures.
LONG_POLL_S = 10.0


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


class ExperienceBroker:
    """Body of the broker actor. Every `wait_*` method returns None after `LONG_POLL_S`; the caller asks again."""

    def __init__(self, ledger_path: str, policy: ShardPolicy, group_size: int) -> None:
        self._ledger = Ledger(ledger_path)
        self._policy = policy
        self._group_size = group_size
        self._steps: dict[int, StepShards] = {}
        self._started: StepReport | None = None
        self._reports: dict[int, StepReport] = {}
        self._awaited = 0  # newest version that the driver has requested; it has all versions before
        self._stopped: str | None = None
        self._end_request: EndRequest | None = None
        self._ends_at: tuple[int, int] | None = None  # step and shard at which all ranks get the request
        self._newest_claim = (-1, -1)  # step and shard that a rank has got
        self._is_exported = self._is_dismissed = False
        self._transfers = TransferQueue()
        self._changed = asyncio.Condition()
        # Methods that never wait, which the driver's client sends several at a time (pipelines/training/broker_client).
        self._batchable: dict[str, Callable[..., Awaitable[Any]]] = {
            method.__name__: method
            for method in (
                self.reopen,
                self.open_step,
                self.reissue,
                self.refill,
                self.replace_abandoned,
                self.record_sampled,
                self.add,
                self.dismiss,
                self.counts,
                self.end,
                self.stop,
            )
        }

    async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Execute several batchable calls in order, each given as (method, arguments).

        Returns:
            The result of each call, or the `RladError` it raised. Any other error is a fault that ends the run and is
            raised for all calls.
        """
        answers: list[Any] = []
        with self._ledger.batch():  # one write to the disk for all calls
            for method, arguments in calls:
                try:
                    answers.append(await self._batchable[method](*arguments))
                except RladError as error:
                    answers.append(error)
        return answers

    async def reopen(self, checkpoint: int) -> list[str]:
        """Take over a run from `checkpoint`: groups of later steps will be issued again. Return the uids before it."""
        return self._ledger.reopen(checkpoint)

    async def open_step(self, step: int, updates: list[list[tuple[str, str]]]) -> dict[str, int]:
        """Issue a step's groups, given as (uid, prompt id) by update. Return the attempt number of each uid."""
        self._raise_if_stopped()
        attempts = self._ledger.issue(step, [group for update in updates for group in update])
        uids = [[uid for uid, _ in update] for update in updates]
        async with self._changed:
            self._steps[step] = StepShards(step, uids, self._group_size, self._policy)
            self._changed.notify_all()
        return attempts

    async def reissue(self, uid: str) -> int:
        """Issue a group again. Return its new attempt number."""
        return self._ledger.reissue(uid)

    async def refill(self, step: int, dropped: str, attempt: int, uid: str, prompt_id: str) -> int:
        """Drop a sampled group and issue another one in its place. Return the new group's attempt number."""
        self._ledger.drop(dropped, attempt)
        return self._replace(step, dropped, uid, prompt_id)

    async def replace_abandoned(self, step: int, abandoned: str, attempt: int, uid: str, prompt_id: str) -> int:
        """Abandon a group that failed and issue another one in its place. Return the new group's attempt number."""
        self._ledger.abandon(abandoned, attempt)
        return self._replace(step, abandoned, uid, prompt_id)

    async def record_sampled(self, uid: str, attempt: int) -> None:
        """Record that a group is sampled."""
        self._ledger.record_sampled(uid, attempt)

    async def add(self, step: int, group: ExperienceGroup) -> None:
        """Add a sampled and scored group to its step. A stale attempt is refused."""
        self._ledger.record_scored(group.uid, group.attempt)
        async with self._changed:
            self._steps[step].add(group)
            self._changed.notify_all()

    async def claim(self, step: int, rank: int, index: int) -> BatchShard | EndRequest | None:
        """Return shard `index` of `step` for `rank`, or the request to end; None if it cannot be formed yet."""

        def find() -> BatchShard | EndRequest | None:
            if self._must_end(step, index):
                return self._end_request
            return self._steps[step].shard(rank, index) if step in self._steps else None

        shard: BatchShard | EndRequest | None = await self._wait_for(find)
        if isinstance(shard, BatchShard):
            self._newest_claim = max(self._newest_claim, (step, index))
            self._ledger.record_claimed(shard.groups)
        return shard

    async def end(self, reason: str) -> bool:
        """Ask the learner to write a checkpoint and to end, instead of claiming its next shard.

        A step in progress is dropped. If some of its updates are applied, the learner finishes it first.

        Returns:
            Whether the learner has started. One that has not has nothing to write.
        """
        async with self._changed:
            self._end_request = EndRequest(reason=reason)
            self._changed.notify_all()
        return self._started is not None

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

    async def report_started(self, step: int, publications: list[WeightsPublication]) -> None:
        """Report that the learner's ranks start at `step`, fresh or from a checkpoint. Later training is undone."""
        async with self._changed:
            self._ledger.rewind(step)
            self._newest_claim, self._ends_at = (-1, -1), None
            self._transfers.sender_restarted()
            self._reports = {version: report for version, report in self._reports.items() if version <= step}
            if step in self._reports:  # the objects it refers to ended with the process that published them
                self._reports[step] = replace(self._reports[step], publications=list(publications))
            self._started = StepReport(version=step, publications=publications, metrics={})
            self._drop_old_weights()
            self._changed.notify_all()

    async def finish_step(self, step: int, publications: list[WeightsPublication], metrics: dict[str, float]) -> None:
        """Report that every update of `step` is applied and the weights of version `step + 1` are published."""
        uids = self._steps[step].uids
        self._ledger.record_claimed(uids)  # groups without any gradient were in no shard, but count as trained
        self._ledger.record_trained(step, uids)
        async with self._changed:
            self._reports[step + 1] = StepReport(version=step + 1, publications=publications, metrics=metrics)
            self._drop_old_weights()
            self._changed.notify_all()

    async def commit(self, checkpoint: int) -> None:
        """Record a durable checkpoint of the steps before `checkpoint`, and release their data."""
        self._ledger.commit(checkpoint)
        self._steps = {step: shards for step, shards in self._steps.items() if step >= checkpoint}

    async def wait_started(self) -> StepReport | None:
        """Wait until the learner's ranks have started."""
        return await self._wait_for(lambda: self._started)

    async def wait_finished(self, step: int) -> StepReport | None:
        """Wait until the learner has finished `step`."""
        self._awaited = max(self._awaited, step + 1)
        self._drop_old_weights()
        return await self._wait_for(lambda: self._reports.get(step + 1))

    async def report_exported(self) -> None:
        """Report that the student is exported. The ranks stay until dismissed: their publications end with them."""
        async with self._changed:
            self._is_exported = True
            self._changed.notify_all()

    async def wait_exported(self) -> bool | None:
        """Wait until the student is exported."""
        return await self._wait_for(lambda: self._is_exported or None)

    async def dismiss(self) -> None:
        """Let the ranks end: no more published weights will be requested."""
        self._ledger.seal()
        async with self._changed:
            self._is_dismissed = True
            self._changed.notify_all()

    async def wait_dismissed(self) -> bool | None:
        """Wait until the ranks may end."""
        return await self._wait_for(lambda: self._is_dismissed or None)

    async def ask_transfer(self, version: int, workers: Mapping[str, ActorHandle]) -> int:
        """Request that the learner sends the weights of `version` to `workers`. Return the request's number."""
        async with self._changed:
            number = self._transfers.ask(version, workers)
            self._changed.notify_all()
        return number

    async def wait_transfer(self, number: int) -> TransferOutcome | None:
        """Wait for the outcome of a transfer request. It is returned once."""
        return await self._wait_for(lambda: self._transfers.outcome(number))

    async def begin_transfer(self, number: int) -> None:
        """Record that the learner begins to send."""
        self._transfers.begin(number)

    async def report_transfer(self, number: int, outcome: TransferOutcome) -> None:
        """Record the outcome of a transfer."""
        async with self._changed:
            self._transfers.finish(number, outcome)
            self._changed.notify_all()

    async def transfer_or_delivered(self, held: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`; True once the driver has requested it and none waits."""
        return await self._wait_for(
            lambda: (
                self._transfers.next(held)
                or self._transfers.is_asked_for(held)
                or self._end_request is not None  # the driver may request nothing more
                or None
            )
        )

    async def transfer_or_shard(self, held: int, step: int, index: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`, or return True once shard `index` of `step` can be claimed."""

        def find() -> TransferRequest | bool | None:
            shards = self._steps.get(step)
            can_claim = self._must_end(step, index) or (shards is not None and shards.shard(0, index) is not None)
            return self._transfers.next(held) or can_claim or None

        return await self._wait_for(find)

    async def transfer_or_dismissed(self, held: int) -> TransferRequest | bool | None:
        """Wait for a request for version `held`, or return True once the ranks may end."""
        return await self._wait_for(lambda: self._transfers.next(held) or self._is_dismissed or None)

    async def counts(self) -> dict[str, int]:
        """Count the ledger's groups by state."""
        return self._ledger.counts().as_dict()

    async def stop(self, reason: str) -> None:
        """Make every present and later wait raise `RunStoppedError`."""
        self._ledger.seal()
        async with self._changed:
            self._stopped = reason
            self._changed.notify_all()

    def _replace(self, step: int, replaced: str, uid: str, prompt_id: str) -> int:
        attempts = self._ledger.issue(step, [(uid, prompt_id)])
        self._steps[step].replace(replaced, uid)
        return attempts[uid]

    def _drop_old_weights(self) -> None:
        """Drop publications older than the version the driver last requested; each pins a full model copy.

        A learner that restarts publishes some of them again.
        """
        self._reports = {version: report for version, report in self._reports.items() if version >= self._awaited}
        if self._started is not None and self._started.version < self._awaited:
            self._started.publications.clear()

    async def _wait_for(self, find: Callable[[], T | None]) -> T | None:
        # The event loop's clock, which is virtual in the simulator; the wall clock would not advance there.
        clock = asyncio.get_running_loop().time
        deadline = clock() + LONG_POLL_S
        async with self._changed:
            while True:
                self._raise_if_stopped()
                found = find()
                remaining = deadline - clock()
                if found is not None or remaining <= 0:
                    return found
                try:
                    await asyncio.wait_for(self._changed.wait(), remaining)
                except TimeoutError:
                    return find()

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise RunStoppedError(self._stopped)
