"""The steps of a training run: which are open, what each waits for, and when the samplers get new weights.

Scheduling alone, without engines: a training run, the benchmark with stub engines and the simulator all drive this code.

Step s trains on weights of version s and makes version s + 1. With `max_staleness` k its groups are issued as soon as version s - k is there, so no token
of it is more than k versions old when it is trained on. Which step and which update a group is of is settled by the order of the prompts before it is
sampled: never by how fast it finished, which would sort by length. A step whose slowest group is late is waited for, while the samplers work ahead.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from actors.experience.broker import StepReport
from actors.messages import WeightsPublication
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import together
from pipelines.training.step_metrics import FollowedGroup, StepTimes
from rlad.config import TrainingConfig
from rlad.data.order import PromptOrder

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """What an epoch goes through, an entry a group.

    Attributes:
        fingerprint: of its content; part of every group's name.
        prompt_ids: the prompt of each entry.
        group_size: responses in each group.
    """

    fingerprint: str
    prompt_ids: Sequence[str]
    group_size: int


class PromptScheduler:
    """Gives out the entries of a training set in its seeded order, epoch after epoch, each under a name that is used once."""

    def __init__(self, training_set: TrainingSet, *, seed: int, used: Iterable[str] = ()) -> None:
        """
        Args:
            used: names that an earlier driver has given out for good.
        """
        self._order = PromptOrder(len(training_set.prompt_ids), seed=seed)
        self._fingerprint = training_set.fingerprint
        self._used = set(used)
        self._next = 0

    def take(self) -> tuple[str, int]:
        """The next group's name, and its entry of the training set."""
        while True:
            epoch, position, record = self._order.turn(self._next)
            self._next += 1
            name = f"{self._fingerprint}:{epoch}:{position}"
            if name not in self._used:
                return name, record
            self._used.remove(name)


@dataclass(slots=True, kw_only=True)
class OpenStep:
    """A step whose groups are on their way.

    Attributes:
        number: of the step.
        dropped: groups that were sampled, found to have nothing to teach, and replaced by others.
    """

    number: int
    dropped: list[FollowedGroup] = field(default_factory=list)


SubmitGroup = Callable[[OpenStep, str, int, int], Coroutine[Any, Any, FollowedGroup]]
"""Brings one group of a step to the broker, or another in its place if it is dropped: (step, its name, its attempt, its entry of the training set)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """A step that the learner has applied and whose weights the samplers hold.

    Attributes:
        groups: all that were sampled for it, dropped ones included.
    """

    number: int
    groups: list[FollowedGroup]
    times: StepTimes
    report: StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHooks:
    """What a run does beside its steps.

    Attributes:
        before: called with the number of a step before it is turned to, when the samplers hold that version; may raise to end the run.
        after: called with each step that is done.
    """

    before: Callable[[int], Awaitable[None]]
    after: Callable[[TrainedStep], Awaitable[None]]


class Steps:
    """Takes a run through its steps."""

    def __init__(
        self,
        training: TrainingConfig,
        training_set: TrainingSet,
        *,
        turns: PromptScheduler,
        broker: BrokerClient,
        bring: SubmitGroup,
        update_weights: Callable[[WeightsPublication], Awaitable[None]],
        hooks: StepHooks,
        step_timeout_s: float,
        clock: Clock = time.time,
    ) -> None:
        """
        Args:
            update_weights: gives the samplers new weights; returns when all have them.
            step_timeout_s: deadline of a step's training once its last group is there.
            clock: seconds, of all times that are recorded.
        """
        self._training, self._training_set, self._turns = training, training_set, turns
        self._broker, self._group_submitter, self._update_weights, self._hooks = broker, bring, update_weights, hooks
        self._step_timeout_s, self._clock = step_timeout_s, clock

    async def run(self, started: StepReport) -> None:
        """Train from the version that the learner starts with to the last step.

        Raises:
            RladError: what went wrong first, wherever; all that was under way is cancelled.
        """
        total = self._training.steps
        await self._update_weights(started.publications.pop())
        next_to_open = started.version
        open_steps: dict[int, tuple[OpenStep, asyncio.Task[list[FollowedGroup]]]] = {}
        try:
            with _old_objects_left_alone():
                async with asyncio.TaskGroup() as bringing:
                    for number in range(started.version, total):
                        await self._hooks.before(number)
                        turned_to_at = self._clock()
                        while next_to_open < total and next_to_open <= number + self._training.max_staleness:
                            step, groups = await self._open(next_to_open)
                            open_steps[next_to_open] = step, bringing.create_task(groups)
                            next_to_open += 1
                        step, groups_coming = open_steps.pop(number)
                        await self._hooks.after(await self._train(step, groups_coming, turned_to_at))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _open(self, number: int) -> tuple[OpenStep, Coroutine[Any, Any, list[FollowedGroup]]]:
        """Issue a step's groups, cut into updates by the order of the prompts."""
        training, step = self._training, OpenStep(number=number)
        groups = [self._turns.take() for _ in range(training.prompts_per_step)]
        size = training.prompts_per_step // training.updates_per_step
        named = [(uid, self._training_set.prompt_ids[record]) for uid, record in groups]
        attempts = await self._broker.tell(
            "open_step", number, [named[start : start + size] for start in range(0, len(named), size)]
        )
        return step, together(*(self._group_submitter(step, uid, attempts[uid], record) for uid, record in groups))

    async def _train(
        self, step: OpenStep, groups: asyncio.Task[list[FollowedGroup]], turned_to_at: float
    ) -> TrainedStep:
        """Wait for a step's groups and for the learner, and hand on the weights that it made of them."""
        kept = await groups
        report: StepReport = await self._broker.poll(
            "wait_finished",
            step.number,
            deadline_s=self._step_timeout_s,
            waiting_for=f"the learner to finish step {step.number}",
        )
        trained_at = self._clock()
        await self._update_weights(report.publications.pop())
        times = StepTimes(started_at=turned_to_at, trained_at=trained_at, weights_at=self._clock())
        return TrainedStep(number=step.number, groups=[*kept, *step.dropped], times=times, report=report)


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Keep what is on the heap now out of garbage collections until the end of the block.

    What a driver has imported lives as long as it does, and every full collection would go through it again: docs/performance.md has what that costs.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
