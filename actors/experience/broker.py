"""The experience broker: holds finished groups for the learner and keeps the run's ledger.

The driver opens a step with its groups cut into updates (mini-batches) in prompt order, so the update of a group never
depends on when it finished. Groups of the update in training are handed out in batch shards as they arrive, and the
learner accumulates gradient while other groups are still being sampled. Shards are kept until a durable checkpoint
holds their step: ranks that restart claim the same shards again. If the learner sends its weights directly to workers,
the broker passes on the requests.

The broker holds references and small numbers, never token data. If its process dies, Ray restarts it. The ledger then
has the groups of every shard that a rank has claimed, the driver hands over the groups (`restore`), and the learner its
reports (`recover_learner`). Until then their calls raise `BrokerRestartedError`, and are repeated. The learner's ranks
go on with the shards that they have.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from actors.experience.batch_shards import BatchShard, EndRequest, ShardPolicy, StepShards
from actors.experience.group import ExperienceGroup
from actors.experience.journal import DriverJournal, LostGroup
from actors.experience.learner_waits import LearnerWaits, StepReport
from actors.messages import WeightsPublication
from rlad.errors import RladError, StaleAttemptError
from rlad.ledger import Ledger

__all__ = ["ExperienceBroker", "StepReport"]


class ExperienceBroker(LearnerWaits):
    """Body of the broker actor. Every `wait_*` method returns None after `LONG_POLL_S`; the caller asks again."""

    def __init__(
        self, ledger_path: str, policy: ShardPolicy, group_size: int, *, is_restarted: bool | None = None
    ) -> None:
        """
        Args:
            ledger_path: Path of the run's ledger.
            policy: Rules by which groups become batch shards.
            group_size: Responses of a group.
            is_restarted: Whether an earlier broker of the same driver has died. None asks Ray.
        """
        super().__init__(is_restarted=_was_restarted() if is_restarted is None else is_restarted)
        self._ledger = Ledger(ledger_path)
        self._policy = policy
        self._group_size = group_size
        self._reports: dict[int, StepReport] = {}
        self._lost: list[LostGroup] = []  # not yet known to the driver
        self._claimed: set[tuple[int, int]] = set()  # step and number of shards that are recorded
        self._finished: tuple[int, dict[str, float]] | None = None  # last step and its metrics
        self._committed = 0
        self._is_exported = False
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

    async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> tuple[list[Any], int]:
        """Execute several batchable calls in order, each given as (method, arguments). They do not yield in between.

        Returns:
            The result of each call, or the `RladError` it raised, and the number of steps that the newest durable
            checkpoint contains. Any other error is a fault that ends the run and is raised for all calls.
        """
        self._require_restored()
        answers: list[Any] = []
        with self._ledger.batch():  # one write to the disk for all calls
            for method, arguments in calls:
                try:
                    answers.append(await self._batchable[method](*arguments))
                except RladError as error:
                    answers.append(error)
        return answers, self._committed

    async def restore(self, journal: DriverJournal) -> None:
        """Take over what the driver holds, after a restart of the broker. Does nothing if that has been done."""
        if self._is_restored:
            return
        for step, held in journal.steps.items():
            recorded = self._ledger.recorded_shards(step)
            self._steps[step] = StepShards(step, held.updates, self._group_size, self._policy, recorded=recorded)
            for group in held.groups.values():
                attempt = self._ledger.attempt(group.uid)
                if attempt == group.attempt:
                    self._steps[step].add(group)
                else:  # reported as lost, and the driver has not been told
                    self._lost.append(LostGroup(step=step, uid=group.uid, attempt=attempt))
        self._newest_claim = self._ledger.newest_shard()
        if journal.end_reason is not None:
            self._end_request = EndRequest(reason=journal.end_reason)
        self._stopped, self._is_dismissed = journal.stop_reason, journal.is_dismissed
        self._is_restored = True
        self._polls.notify()

    async def recover_learner(self, reports: Sequence[StepReport], is_exported: bool) -> None:
        """Take over the learner's reports, oldest first, after a restart of the broker. May be repeated."""
        if self._started is None:
            self._started = replace(reports[0], metrics={})
            self._reports = {report.version: report for report in reports} | self._reports
        self._is_exported |= is_exported
        self._polls.notify()

    async def reopen(self, checkpoint: int) -> list[str]:
        """Take over a run from `checkpoint`: groups of later steps will be issued again. Return the uids before it."""
        return self._ledger.reopen(checkpoint)

    async def open_step(self, step: int, updates: list[list[tuple[str, str]]]) -> dict[str, int]:
        """Issue a step's groups, given as (uid, prompt id) by update. Return the attempt number of each uid."""
        self._raise_if_stopped()
        attempts = self._ledger.issue(step, [group for update in updates for group in update])
        uids = [[uid for uid, _ in update] for update in updates]
        self._steps[step] = StepShards(step, uids, self._group_size, self._policy)
        self._polls.notify()
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
        if step in self._steps:  # otherwise repeated after a checkpoint
            self._steps[step].add(group)
        self._polls.notify()

    async def claim(self, step: int, rank: int, index: int) -> BatchShard | EndRequest | None:
        """Return shard `index` of `step` for `rank`, or the request to end; None if it cannot be formed yet."""
        if rank == 0:
            self._require_learner()

        def find() -> BatchShard | EndRequest | None:
            if self._must_end(step, index):
                return self._end_request
            return self._steps[step].shard(rank, index) if step in self._steps else None

        shard: BatchShard | EndRequest | None = await self._wait_for(find)
        if isinstance(shard, BatchShard) and (step, index) not in self._claimed:
            self._ledger.record_shard(step, index, *self._steps[step].groups_of(index))
            self._claimed.add((step, index))
            self._newest_claim = max(self._newest_claim, (step, index))
        return shard

    async def report_lost(self, step: int, index: int, groups: list[tuple[str, int]]) -> bool:
        """Report groups of a shard whose data were lost with a node, as pairs (uid, attempt).

        No rank has trained on the shard. It is dissolved with all later ones of the step, and the groups are issued
        again.

        Returns:
            Whether the ranks can go on and claim shard `index` again. They cannot if an earlier shard of the step
            contains such a group: then they have to restart from their checkpoint.
        """
        self._require_restored()
        shards = self._steps[step]
        first = shards.first_with([uid for uid, _ in groups])
        for uid, attempt in groups:
            try:
                self._lost.append(LostGroup(step=step, uid=uid, attempt=self._ledger.withdraw(uid, attempt)))
            except StaleAttemptError:
                continue  # reported before
        first = index if first is None else min(first, index)
        shards.dissolve(first, [lost.uid for lost in self._lost])
        self._ledger.forget_shards(step, first)
        self._claimed = {claim for claim in self._claimed if claim < (step, first)}
        self._polls.notify()
        return first == index

    async def wait_lost(self) -> list[LostGroup] | None:
        """Wait for groups whose data were lost. They are issued already, and returned once."""
        self._require_restored()
        lost = await self._wait_for(lambda: self._lost or None)
        self._lost = []
        return lost

    async def end(self, reason: str) -> bool:
        """Ask the learner to write a checkpoint and to end, instead of claiming its next shard.

        A step in progress is dropped. If some of its updates are applied, the learner finishes it first.

        Returns:
            Whether the learner has started. One that has not has nothing to write.
        """
        self._end_request = EndRequest(reason=reason)
        self._polls.notify()
        return self._started is not None or self.is_restarted

    async def report_started(self, step: int, publications: list[WeightsPublication]) -> None:
        """Report that the learner's ranks start at `step`, fresh or from a checkpoint. Later training is undone."""
        self._ledger.rewind(step)
        self._newest_claim, self._ends_at = (-1, -1), None
        self._transfers.sender_restarted()
        self._reports = {version: report for version, report in self._reports.items() if version <= step}
        if step in self._reports:  # the objects it refers to ended with the process that published them
            self._reports[step] = replace(self._reports[step], publications=list(publications))
        self._claimed, self._finished = set(), None
        self._started = StepReport(version=step, publications=publications, metrics={})
        self._drop_old_weights()
        self._polls.notify()

    async def finish_step(self, step: int, publications: list[WeightsPublication], metrics: dict[str, float]) -> int:
        """Report that every update of `step` is applied and the weights of version `step + 1` are published.

        Returns:
            Newest version that the driver has requested. It has all versions before.
        """
        self._require_restored()
        self._require_learner()
        is_lost_report = self.is_restarted and step + 1 not in self._reports and self._ledger.is_trained(step)
        # Metrics hold times, so those of a step that is trained twice differ.
        is_repeated = self._finished == (step, metrics)
        if not is_lost_report and not is_repeated:
            self._ledger.record_trained(step, self._steps[step].uids)
        self._finished = step, metrics
        self._reports[step + 1] = StepReport(version=step + 1, publications=publications, metrics=metrics)
        self._drop_old_weights()
        self._polls.notify()
        return self._awaited

    async def commit(self, checkpoint: int) -> None:
        """Record a durable checkpoint of the steps before `checkpoint`, and release their data."""
        self._ledger.commit(checkpoint)
        self._committed = max(self._committed, checkpoint)
        self._steps = {step: shards for step, shards in self._steps.items() if step >= checkpoint}

    async def wait_started(self) -> StepReport | None:
        """Wait until the learner's ranks have started."""
        self._require_restored()
        return await self._wait_for(lambda: self._started)

    async def wait_finished(self, step: int) -> StepReport | None:
        """Wait until the learner has finished `step`."""
        self._require_restored()
        self._awaited = max(self._awaited, step + 1)
        self._drop_old_weights()
        return await self._wait_for(lambda: self._reports.get(step + 1))

    async def report_exported(self) -> None:
        """Report that the student is exported. The ranks stay until dismissed: their publications end with them."""
        self._require_learner()
        self._is_exported = True
        self._polls.notify()

    async def wait_exported(self) -> bool | None:
        """Wait until the student is exported. The driver has all versions then."""
        self._require_restored()
        self._has_all_versions = True
        self._polls.notify()
        return await self._wait_for(lambda: self._is_exported or None)

    async def dismiss(self) -> None:
        """Let the ranks end: no more published weights will be requested."""
        self._ledger.seal()
        self._is_dismissed = True
        self._polls.notify()

    async def counts(self) -> dict[str, int]:
        """Count the ledger's groups by state."""
        return self._ledger.counts().as_dict()

    async def stop(self, reason: str) -> None:
        """Make every present and later wait raise `RunStoppedError`."""
        self._ledger.seal()
        self._stopped = reason
        self._polls.notify()

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


def _was_restarted() -> bool:
    """Return whether this process continues an actor that has died."""
    ray: Any = sys.modules.get("ray")  # a simulation uses the broker without Ray
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)
