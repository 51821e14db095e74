"""Simulation of a run in virtual time: the real step pipeline, broker and routing over pools that only take time."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ColumnsRef
from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult, WeightsPublication
from actors.pool.routing import Router, queue_capacity
from actors.pool.speed import SlowWorker, watch_speeds
from pipelines.simulation.harness import StandInPools, group_uids, run_steps, stand_in_prompts
from pipelines.simulation.losses import LosableLearner, Losses, SimulatedTeacher, exponential_lifetimes
from pipelines.simulation.stand_ins import DecodingSlots, InProcess, StandInLearner
from pipelines.simulation.workload import Lengths, PoolSizes, PoolWork, Speeds, work_of
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import RunConfig
from rlad.contracts import GenerationProgress, Outcome, Verdicts
from rlad.errors import WorkerLostError
from rlad.failures import Action, Event, decide_for_pool
from rlad.testing.virtual_time import run_in_virtual_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Losses of workers, each independent of the others.

    Attributes:
        mean_between_s: Mean lifetime of a rollout worker, seconds.
        restart_s: Time until the replacement of a lost worker serves, seconds.
        teacher_between_s: Mean lifetime of a teacher replica, seconds; None if none is lost.
        learner_between_s: Mean time between two losses of learner ranks, seconds; None if none is lost. The learner
            restarts from its newest checkpoint.
    """

    mean_between_s: float
    restart_s: float
    teacher_between_s: float | None = None
    learner_between_s: float | None = None

    def of_teacher(self, replicas: int, seed: int) -> list[Losses]:
        """Return the losses of each teacher replica; empty if none is lost."""
        if self.teacher_between_s is None:
            return []
        # Stream 1 is the learner's.
        return [self._losses(self.teacher_between_s, (seed, 2 + number)) for number in range(replicas)]

    def of_learner(self, seed: int) -> Losses | None:
        """Return the losses of the learner; None if it is never lost."""
        return None if self.learner_between_s is None else self._losses(self.learner_between_s, (seed, 1))

    def _losses(self, mean_s: float, seed: tuple[int, int]) -> Losses:
        return Losses(lifetimes_s=exponential_lifetimes(mean_s, seed=seed), restart_s=self.restart_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowWorkers:
    """Rollout workers that are slower than the others. They are replaced by the rules and the settings of a real run.

    Attributes:
        factors: How many times slower a worker is, by its number. Replacements continue the numbers of the first
            workers.
        restart_s: Time until a replacement serves, seconds.
    """

    factors: Mapping[int, float]
    restart_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """Result of a simulation. All times are virtual seconds.

    Attributes:
        makespan_s: Time from the first issued group to the last step's weights.
        work: Work of each pool, which gives the lower bound of any schedule.
        busy: Share of the makespan during which each pool worked.
        steps: The trained steps.
        lost: Number of workers of each pool that were lost.
    """

    makespan_s: float
    work: PoolWork
    busy: dict[str, float]
    steps: list[TrainedStep]
    lost: dict[str, int]

    @property
    def lost_workers(self) -> int:
        """Number of workers that were lost."""
        return sum(self.lost.values())

    @property
    def makespan_over_bound(self) -> float:
        return self.makespan_s / self.work.bound

    @property
    def step_s(self) -> float:
        """Median time of a step. The first step fills the pipeline and the last empties it."""
        times = [step.times.weights_at - step.times.started_at for step in self.steps]
        return float(np.median(times))


def simulate(
    config: RunConfig,
    *,
    lengths: Lengths,
    speeds: Speeds,
    sizes: PoolSizes,
    failures: Failures | None = None,
    slow: SlowWorkers | None = None,
) -> SimulatedRun:
    """Simulate a run in virtual time.

    Args:
        config: Its training, rollout, learner, objective and failure settings determine the schedule. Its models and
            prompts are not read.
        lengths: Distribution of the response lengths.
        speeds: Speeds of the pools.
        sizes: Sizes of the pools, instead of the configuration's.
        failures: Losses of workers; none by default.
        slow: Slow rollout workers. By default none is slow and speeds are not compared.
    """
    with tempfile.TemporaryDirectory(prefix="rlad-simulation-") as folder:
        return run_in_virtual_time(_simulate(config, Path(folder), lengths, speeds, sizes, failures, slow))


async def _simulate(
    config: RunConfig,
    folder: Path,
    lengths: Lengths,
    speeds: Speeds,
    sizes: PoolSizes,
    failures: Failures | None,
    slow: SlowWorkers | None,
) -> SimulatedRun:
    loop = asyncio.get_running_loop()
    prompts = stand_in_prompts(config.training.prompts_per_step * 4)
    broker = InProcess(
        ExperienceBroker(str(folder / "ledger.sqlite"), stand_in_shard_policy(config), config.rollout.group_size)
    )
    rollout = SimulatedRollout(config, lengths, speeds, sizes.rollout, failures, slow)
    verifiers = SimulatedVerifiers(speeds, sizes.verifier, lengths.group_size)
    teacher_losses = failures.of_teacher(sizes.teacher, lengths.seed) if failures is not None else []
    teacher = SimulatedTeacher(speeds, sizes.teacher, teacher_losses) if sizes.teacher else None
    learner = StandInLearner(broker, lengths, speeds, checkpoint_steps=config.checkpoints.every_steps)
    restarting = LosableLearner(learner, failures.of_learner(lengths.seed) if failures is not None else None)
    learning = asyncio.create_task(restarting.run(config.training.steps))
    started_at = loop.time()
    pools = StandInPools(rollout=rollout, verifiers=verifiers, teacher=teacher, update_weights=rollout.update_weights)
    try:
        steps = await run_steps(config, prompts, pools, broker, clock=loop.time)
    finally:
        rollout.close()
        if teacher is not None:
            teacher.close()
        learning.cancel()
        with suppress(asyncio.CancelledError):
            await learning
    makespan_s = loop.time() - started_at
    groups = [lengths.of_group(name) for name in group_uids(config, prompts)]
    return SimulatedRun(
        makespan_s=makespan_s,
        work=work_of(
            groups,
            speeds,
            sizes,
            updates=config.training.steps * config.training.total_updates_per_step,
            passes=config.training.passes,
        ),
        busy={
            "rollout": rollout.slot_s / (makespan_s * sizes.rollout * speeds.slots),
            **({"teacher": teacher.busy_s / (makespan_s * sizes.teacher)} if teacher is not None else {}),
            "verifier": verifiers.busy_s / (makespan_s * sizes.verifier),
            "learner": learner.trained_s / makespan_s,
        },
        steps=steps,
        lost={
            "rollout": rollout.num_lost,
            **({"teacher": teacher.num_lost} if teacher is not None else {}),
            "learner": restarting.num_lost,
        },
    )


def stand_in_shard_policy(config: RunConfig) -> ShardPolicy:
    """Return the shard policy of a simulated run. Every stand-in group has different rewards, so none is left out."""
    return ShardPolicy(
        ranks=1,  # the stand-in learner stands for all ranks
        token_budget=config.learner.micro_batch_tokens * config.learner.sequence_groups,
        skip_equal_rewards=True,
        skip_truncated=False,
        counts_tokens=config.objective.aggregation == "token_mean",
        passes=config.training.passes,
    )


class SimulatedRollout:
    """Rollout pool: the real router over engines that only take time."""

    def __init__(
        self,
        config: RunConfig,
        lengths: Lengths,
        speeds: Speeds,
        workers: int,
        failures: Failures | None,
        slow: SlowWorkers | None = None,
    ) -> None:
        self._lengths, self._speeds, self._failures, self._slow = lengths, speeds, failures, slow
        self._router = Router(
            capacity=queue_capacity(config.rollout.model_copy(update={"max_sequences": speeds.slots}))
        )
        self._engines: dict[str, DecodingSlots] = {}
        self._lost: dict[str, asyncio.Future[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._random = np.random.default_rng(lengths.seed)
        self._version = 0
        self._target, self._restarts_left = workers, config.rollout.max_restarts
        self._num_starting = 0
        self._numbers = itertools.count(workers)
        self.slot_s = 0.0
        self.num_lost = self.num_slow = 0
        for number in range(workers):
            self._admit(number)
            if failures is not None:
                self._tasks.append(asyncio.create_task(self._live(number, failures)))
        if slow is not None:  # not otherwise, since a timer that never ends hides a deadlock
            give_up = partial(self._give_up, restart_s=slow.restart_s)
            self._tasks.append(watch_speeds(config.failures, read=self._read_progress, give_up=give_up))

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        name = await self._router.enqueue(request.max_total_tokens, priority=priority)
        version = self._version
        lengths = self._lengths.of_group(request.uid)
        try:
            await self._decode(name, lengths)
        finally:
            self._router.release(name, request.max_total_tokens)
        self.slot_s += sum(lengths) * self._speeds.token_s
        summary = GroupSummary(
            uid=request.uid,
            attempt=request.attempt,
            prompt_tokens=len(request.prompt_ids),
            response_lengths=lengths,
            is_truncated=(False,) * len(lengths),
            tokens_by_version={version: sum(lengths)},
        )
        return SampledGroup(summary=summary, columns=None, worker=name)

    async def update_weights(self, publication: WeightsPublication) -> None:
        await asyncio.sleep(self._speeds.weights_s)
        self._version = publication.manifest.version

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _admit(self, number: int) -> None:
        name = f"rollout-{number}"
        factor = self._slow.factors.get(number, 1.0) if self._slow is not None else 1.0
        self._engines[name] = DecodingSlots(replace(self._speeds, token_s=factor * self._speeds.token_s))
        self._lost[name] = asyncio.get_running_loop().create_future()
        self._router.admit(name)

    async def _decode(self, name: str, lengths: tuple[int, ...]) -> None:
        lost = self._lost[name]
        decoding = asyncio.create_task(self._engines[name].decode(lengths))
        try:
            # unlimited wait: in virtual time, where `StuckError` ends a wait for nothing
            await asyncio.wait({decoding, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not decoding.done():
                raise WorkerLostError(f"{name} was lost")
        finally:
            decoding.cancel()

    def _lose(self, name: str) -> None:
        self.num_lost += 1
        self._router.remove(name)
        self._lost[name].set_result(None)

    async def _live(self, number: int, failures: Failures) -> None:
        while True:
            await asyncio.sleep(float(self._random.exponential(failures.mean_between_s)))
            self._lose(f"rollout-{number}")
            await asyncio.sleep(failures.restart_s)
            self._admit(number)

    async def _read_progress(self) -> dict[str, GenerationProgress]:
        return {name: engine.progress() for name, engine in self._engines.items() if not self._lost[name].done()}

    def _give_up(self, slow: SlowWorker, *, restart_s: float) -> None:
        self.num_slow += 1
        self._lose(slow.name)
        decision = decide_for_pool(
            Event.WORKER_LOST,
            ready=len(self._router),
            starting=self._num_starting,
            target=self._target,
            restarts_left=self._restarts_left,
        )
        self._restarts_left = decision.restarts_left
        if decision.action is Action.REPLACE:
            self._num_starting += 1
            self._tasks.append(asyncio.create_task(self._start_replacement(restart_s)))

    async def _start_replacement(self, restart_s: float) -> None:
        await asyncio.sleep(restart_s)
        self._num_starting -= 1
        self._admit(next(self._numbers))


class SimulatedVerifiers:
    """Verifier processes. The first response of every group is correct, the others are wrong."""

    def __init__(self, speeds: Speeds, processes: int, group_size: int) -> None:
        self._speeds, self._group_size = speeds, group_size
        self._free = asyncio.Semaphore(processes)
        self.busy_s = 0.0

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        async with self._free:
            await asyncio.sleep(self._speeds.verdict_s)
        self.busy_s += self._speeds.verdict_s
        return stand_in_result(self._group_size, elapsed_s=self._speeds.verdict_s)


@lru_cache
def stand_in_result(group_size: int, *, elapsed_s: float, num_correct: int = 1) -> VerifierResult:
    """Return a stand-in's verdicts on any group: the first `num_correct` responses are correct."""
    is_correct = np.arange(group_size) < num_correct
    verdicts = Verdicts(
        uid="stand-in",
        attempt=0,
        rewards=is_correct.astype(np.float32),
        outcomes=np.where(is_correct, Outcome.CORRECT, Outcome.WRONG).astype(np.uint8),
        elapsed_s=np.full(group_size, elapsed_s / group_size, np.float32),
    )
    return VerifierResult(verdicts=verdicts, elapsed_s=elapsed_s)
