"""Steps of a training run: which are open, which groups each has, and when the samplers get new weights.

Scheduling only, without engines: a training run, the scheduler benchmark and the simulator all use this module.

Step s trains on weights of version s and produces version s + 1. With `max_staleness` k, the groups of step s are
issued as soon as version s - k exists, so no token is more than k versions old when it is trained on. The order of the
prompts
decides which step and update a group belongs to. The order in which groups finish does not: it would sort them by
length. A step waits for its slowest group, while the samplers work ahead on later steps.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.experience.broker import StepReport
from actors.experience.journal import LostGroup
from actors.messages import WeightsPublication
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import together
from pipelines.training.step_metrics import GroupRecord, StepTimes
from rlad.config import TrainingConfig
from rlad.data.order import Mixture, training_order
from rlad.errors import DeadlineError, WeightsLostError

logger = logging.getLogger(__name__)

_LOST_WEIGHTS_PAUSE_S = 1.0

Clock = Callable[[], float]
UpdateWeights = Callable[[WeightsPublication], Awaitable[None]]
"""Gives the samplers new weights. Returns when all of them have loaded the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Entries of an epoch, one for each group.

    Attributes:
        fingerprint: Fingerprint of the content; part of every group's uid.
        prompt_ids: Prompt id of each entry.
        group_size: Responses in each group.
        mixture: Sources of the entries; None if all are of one source.
    """

    fingerprint: str
    prompt_ids: Sequence[str]
    group_size: int
    mixture: Mixture | None = None


class PromptScheduler:
    """Gives out the entries of a training set in seeded order, epoch after epoch, each under a unique uid."""

    def __init__(self, training_set: TrainingSet, *, seed: int, used: Iterable[str] = ()) -> None:
        """
        Args:
            training_set: Entries to give out.
            seed: Seed of the order.
            used: Uids that an earlier driver has given out, and whose groups are part of the checkpoint.
        """
        self._order = training_order(len(training_set.prompt_ids), seed, training_set.mixture)
        self._fingerprint = training_set.fingerprint
        self._used = set(used)
        self._next = 0

    def take(self) -> tuple[str, int]:
        """Return the next group's uid and its entry of the training set."""
        while True:
            epoch, position, entry = self._order.turn(self._next)
            self._next += 1
            uid = f"{self._fingerprint}:{epoch}:{position}"
            if uid not in self._used:
                return uid, entry
            self._used.remove(uid)


@dataclass(slots=True, kw_only=True)
class OpenStep:
    """A step whose groups are in progress.

    Attributes:
        number: Number of the step.
        dropped: Sampled groups that carried no training signal and were replaced by others.
        abandoned: Uids of groups that failed on every attempt and were replaced by others.
        entries: Entry of the training set of each group that was issued for the step, by uid.
        reissued: Records of groups that were sampled again because their data were lost, by uid.
    """

    number: int
    entries: dict[str, int] = field(default_factory=dict)
    reissued: dict[str, GroupRecord] = field(default_factory=dict)
    dropped: list[GroupRecord] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)


class GroupSource(Protocol):
    """Produces the groups of a run."""

    async def submit_group(self, step: OpenStep, uid: str, attempt: int, entry: int) -> GroupRecord:
        """Produce a group and add it to its step at the broker.

        Args:
            step: Step of the group.
            uid: The group's uid.
            attempt: The group's attempt number.
            entry: The group's entry of the training set.

        Returns:
            Record of the submitted group, which is another one if this one was dropped.
        """

    def metrics(self, trained: TrainedStep) -> dict[str, float]:
        """Compute the metrics of a trained step, named `area/name_unit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """A step that the learner has applied and whose weights the samplers have loaded.

    Attributes:
        number: Number of the step.
        groups: All groups that were sampled for it, dropped ones included.
        num_abandoned: Number of groups that failed on every attempt and were replaced by others.
        times: When the step passed its stages.
        report: The learner's report.
    """

    number: int
    groups: list[GroupRecord]
    num_abandoned: int
    times: StepTimes
    report: StepReport


class StepPipeline:
    """Opens the steps of a run ahead of time, and trains them in order."""

    def __init__(
        self,
        training: TrainingConfig,
        training_set: TrainingSet,
        *,
        scheduler: PromptScheduler,
        broker: BrokerClient,
        source: GroupSource,
        update_weights: UpdateWeights,
        step_timeout_s: float,
        clock: Clock = time.time,
    ) -> None:
        """
        Args:
            training: The `training` section.
            training_set: Entries to train on.
            scheduler: Gives out the groups.
            broker: Client of the broker.
            source: Produces the groups.
            update_weights: Gives the samplers new weights.
            step_timeout_s: Deadline of a step's training after its last group has arrived, seconds.
            clock: Clock of all recorded times, seconds.
        """
        self._training, self._training_set, self._scheduler = training, training_set, scheduler
        self._broker, self._source, self._update_weights = broker, source, update_weights
        self._step_timeout_s, self._clock = step_timeout_s, clock
        self._open_steps: dict[int, tuple[OpenStep, asyncio.Task[list[GroupRecord]]]] = {}
        self._next_to_open = 0
        self._uncommitted: dict[int, OpenStep] = {}
        self._reissuing = self._reissued = 0
        # Without staleness, weights change only while no group is in flight.
        self._weights_in_use: AbstractAsyncContextManager[None] = (
            asyncio.Lock() if training.max_staleness == 0 else nullcontext()
        )
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def open(self, started: StepReport) -> AsyncIterator[None]:
        """Give the samplers the learner's first weights, and let steps be trained inside the block.

        Groups that are still in progress at the end of the block are awaited, or cancelled if it fails.

        Args:
            started: The learner's report on its start; its version is the first step to train.

        Raises:
            RladError: The first error of the block or of a group in progress; everything else is cancelled.
        """
        await self._update_weights(started.publications.pop())
        self._next_to_open = started.version
        try:
            with _frozen_heap():
                async with asyncio.TaskGroup() as self._tasks:
                    reissuing = self._tasks.create_task(self._reissue_lost())
                    try:
                        yield
                    finally:
                        reissuing.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def train_step(self, number: int) -> TrainedStep:
        """Train one step. Opens it, and the steps after it that may work ahead.

        Waits for: the step's groups, then the learner, then the samplers' new weights.
        """
        started_at = self._clock()
        last_to_open = min(number + self._training.max_staleness, self._training.steps - 1)
        while self._next_to_open <= last_to_open:
            step, groups = await self._open_step(self._next_to_open)
            self._open_steps[self._next_to_open] = step, self._tasks.create_task(groups)
            self._next_to_open += 1
        step, submitted = self._open_steps.pop(number)
        groups_of_step = await submitted
        report = await self._wait_finished(number)
        trained_at = self._clock()
        report = await self._give_weights(number, report)
        times = StepTimes(started_at=started_at, trained_at=trained_at, weights_at=self._clock())
        last_groups = [step.reissued.get(group.summary.uid, group) for group in groups_of_step]
        return TrainedStep(
            number=number,
            groups=[*last_groups, *step.dropped],
            num_abandoned=len(step.abandoned),
            times=times,
            report=report,
        )

    async def _open_step(self, number: int) -> tuple[OpenStep, Coroutine[Any, Any, list[GroupRecord]]]:
        """Issue the groups of a step at the broker, cut into updates in prompt order."""
        training, step = self._training, OpenStep(number=number)
        entries = [self._scheduler.take() for _ in range(training.prompts_per_step)]
        named = [(uid, self._training_set.prompt_ids[entry]) for uid, entry in entries]
        size = training.prompts_per_step // training.updates_per_step
        updates = [named[start : start + size] for start in range(0, len(named), size)]
        attempts = await self._broker.open_step(number, updates)
        step.entries.update(entries)
        self._uncommitted = {
            earlier: opened for earlier, opened in self._uncommitted.items() if earlier >= self._broker.committed
        }
        self._uncommitted[number] = step
        groups = (self._source.submit_group(step, uid, attempts[uid], entry) for uid, entry in entries)
        return step, together(*groups)

    async def _wait_finished(self, number: int) -> StepReport:
        """Wait until the learner has finished a step. The deadline starts again while lost groups are sampled again."""
        while True:
            reissued = self._reissued
            try:
                return await self._broker.wait_finished(number, deadline_s=self._step_timeout_s)
            except DeadlineError:
                if not self._reissuing and reissued == self._reissued:
                    raise

    async def _give_weights(self, number: int, report: StepReport) -> StepReport:
        """Give the samplers the weights of a step, and return the report with which that succeeded.

        If the learner's process ends meanwhile, its weights end with it. The restarted learner trains the step again,
        or publishes the weights of its checkpoint.

        Raises:
            WeightsLostError: The learner did not publish the weights again in time.
        """
        deadline = self._clock() + self._step_timeout_s
        while True:
            try:
                async with self._weights_in_use:
                    await self._update_weights(report.publications.pop())
                return report
            except WeightsLostError as error:
                if self._clock() > deadline:
                    raise
                logger.warning("weights=lost version=%d reason=%s", number + 1, error)
            await asyncio.sleep(_LOST_WEIGHTS_PAUSE_S)  # the broker has the old report until the learner restarts
            report = await self._wait_finished(number)

    async def _reissue_lost(self) -> None:
        """Sample groups again whose data were lost with a node, in the background."""
        while True:
            for lost in await self._broker.wait_lost():
                self._reissuing += 1
                self._tasks.create_task(self._reissue(lost))

    async def _reissue(self, lost: LostGroup) -> None:
        step = self._uncommitted[lost.step]
        logger.warning("group=%s step=%d state=lost attempt=%d", lost.uid, lost.step, lost.attempt)
        async with self._weights_in_use:
            step.reissued[lost.uid] = await self._source.submit_group(
                step, lost.uid, lost.attempt, step.entries[lost.uid]
            )
        self._reissuing, self._reissued = self._reissuing - 1, self._reissued + 1


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude the present heap from garbage collection inside the block.

    Imported modules live as long as the driver, and every full collection would traverse them again. See
    docs/performance.md for the cost.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
