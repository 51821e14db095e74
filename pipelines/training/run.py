"""What every training run shares, wherever its groups come from: the learner and its broker, the steps, evaluation, records, and the way to the result.

A kind of run is a subclass of `TrainingRun` that says how one group of a step reaches the broker; nothing else is open.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import ray
from rich.console import Console

from actors.controller import PoolBounds, RunState, start_controller
from actors.experience.broker import ExperienceBroker, ShardPolicy
from actors.learner.group import LearnerGroup
from actors.pool.placement import HEAD_POOL, selector_of
from actors.weights.transports import WeightTransport, weight_transport
from pipelines.cluster.connection import connected, labelled_resources
from pipelines.cluster.live_run import record_cluster
from pipelines.cluster.resources import require_labelled_room, require_room
from pipelines.reports.run_report import write_report
from pipelines.run.bottleneck import pool_sizes
from pipelines.run.directory import RunDirectory
from pipelines.run.model_card import write_model_card
from pipelines.run.progress import RunProgress, accuracy_table
from pipelines.run.result import RunResult, finished_result, run_id_of
from pipelines.run.telemetry import Telemetry
from pipelines.training.autoscaler import RolloutAutoscaler
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import unless, within
from pipelines.training.evaluation import evaluate
from pipelines.training.pools import Pools, open_pools
from pipelines.training.prompts import EncodedPrompts, prepare_prompts, require_disjoint, require_group_key
from pipelines.training.step_loop import PromptScheduler, StepHooks, Steps, SubmitGroup, TrainedStep, TrainingSet
from pipelines.training.step_metrics import step_metrics
from pipelines.training.utilization import PoolUse
from rlad.config import RunConfig
from rlad.errors import ConfigError, RunDirectoryError, RunStoppedError

logger = logging.getLogger(__name__)

_CONTROLLER_TIMEOUT_S = 60.0
# How often the controller learns how the run stands, at least.
_LISTEN_S = 1.0

Train = Callable[[RunProgress], Coroutine[Any, Any, None]]


def require_kind(config: RunConfig, *, offline: bool) -> None:
    """Refuse a configuration of the other kind of run.

    Raises:
        ConfigError: which command it is for.
    """
    if offline and config.offline is None:
        raise ConfigError(
            f"objective {config.objective.name!r} trains on the student's own responses: start it with `rlad run`, not `rlad offline`"
        )
    if not offline and config.offline is not None:
        raise ConfigError(
            f"objective {config.objective.name!r} trains on the teacher's traces: start it with `rlad offline`, not `rlad run`"
        )


def prepare_evaluation(config: RunConfig, student: str, training: EncodedPrompts) -> EncodedPrompts:
    """The evaluation's prompts, which must not be trained on."""
    prompts = prepare_prompts(config.evaluation.prompts, config, student)
    require_disjoint(training, prompts)
    require_group_key(prompts, config.evaluation)
    return prompts


def complete(config: RunConfig, run: RunDirectory, console: Console, train: Train) -> RunResult:
    """SubmitGroup a run to its result: what `train` does on a cluster, unless it was done before, then report and model card.

    Raises:
        RladError: what went wrong, in one sentence; the run directory holds the last checkpoint.
    """
    result = finished_result(config, run)
    if result is not None:
        console.print(f"[green]✓[/] this run is finished: {config.training.steps} steps", highlight=False)
    else:
        result = _run_on_cluster(config, run, console, train)
    write_report(run)
    write_model_card(run, before=result.before, after=result.after)
    columns = {"before": result.before, "after": result.after}
    console.print(accuracy_table("Accuracy of the student", columns, group_by=config.evaluation.group_label))
    console.print(f"student: {run.export}\nreport:  {run.report}", soft_wrap=True, highlight=False)
    return result


def _run_on_cluster(config: RunConfig, run: RunDirectory, console: Console, train: Train) -> RunResult:
    with connected(config.cluster) as resources, RunProgress(console, total_steps=config.training.steps) as progress:
        require_room(config, resources, "the cluster")
        if config.cluster.pool_labels:
            require_labelled_room(config, labelled_resources())
        asyncio.run(train(progress))
    result = finished_result(config, run)
    if result is None:
        raise RunDirectoryError(f"{run.path} does not hold what the run has just written: was it changed meanwhile?")
    return result


class TrainingRun(abc.ABC):
    """One training run, from its pools' start to the student's export. Subclasses say where the groups of a step come from."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        training_set: TrainingSet,
        evaluation_prompts: EncodedPrompts,
        progress: RunProgress,
    ) -> None:
        self._config, self._run, self._progress = config, run, progress
        self._training_set, self._evaluation_prompts = training_set, evaluation_prompts
        self._run_id = run_id_of(config, run)
        self._autoscaler = RolloutAutoscaler(config.rollout)
        self._is_stopping = False
        self._trained_steps = 0
        self._last_metrics: dict[str, float] = {}
        self._controller: Any = None
        self._broker: BrokerClient
        self._pools: Pools
        self._pool_use: PoolUse
        self._telemetry: Telemetry
        self._accuracy: float | None = None

    @abc.abstractmethod
    def _group_submitter(self, turns: PromptScheduler) -> SubmitGroup:
        """What brings the groups of a step to the broker. Called once, when the pools are up; `turns` names whatever takes a dropped group's place."""

    async def run(self) -> None:
        config = self._config
        policy = ShardPolicy(
            ranks=config.learner.ranks,
            token_budget=config.learner.micro_batch_tokens,
            skip_equal_rewards=config.objective.zero_advantage_gives_zero_gradient,
            skip_truncated=config.learner.truncated == "mask",
            counts_tokens=config.objective.aggregation == "token_mean",
        )
        # It writes the ledger and holds every reference: where there are labels it stays with the driver, on the node that no autoscaler removes.
        broker = ray.remote(ExperienceBroker).options(num_cpus=0, label_selector=selector_of(config.cluster, HEAD_POOL))
        handle = broker.remote(str(self._run.ledger), policy, self._training_set.group_size)
        self._broker = BrokerClient(handle=handle)
        learner = LearnerGroup(config, run_dir=self._run.path, broker=handle, run_id=self._run_id)
        learner.start()
        try:
            await unless(learner.wait(), self._run_with(learner, weight_transport(config.weights.transport, handle)))
        except BaseException as error:
            await self._broker.tell("stop", f"the driver ended: {type(error).__name__}")
            raise
        finally:
            await learner.close()

    async def _run_with(self, learner: LearnerGroup, transport: WeightTransport) -> None:
        config, total = self._config, self._config.training.steps
        async with AsyncExitStack() as closing:
            teachers = "teachers, " if config.scoring_pools else ""
            with self._progress.phase(f"starting rollout workers, {teachers}verifiers and learner"):
                self._pools = await closing.enter_async_context(
                    open_pools(config, run_id=self._run_id, transport=transport)
                )
                self._run.record_teachers({name: each.teacher for name, each in self._pools.teachers.items()})
                started = await self._broker.poll(
                    "wait_started", deadline_s=config.cluster.start_timeout_s, waiting_for="the learner to start"
                )
            self._controller = start_controller(
                self._run_id, self._bounds(), label_selector=selector_of(config.cluster, HEAD_POOL)
            )
            closing.callback(ray.kill, self._controller)
            record_cluster(self._run, self._run_id)
            closing.callback(self._run.cluster.unlink, missing_ok=True)
            listening = asyncio.create_task(self._handle_requests())
            listening.add_done_callback(_log_listener_failure)
            closing.callback(listening.cancel)
            turns = PromptScheduler(
                self._training_set, seed=config.seed, used=await self._broker.tell("reopen", started.version)
            )
            self._trained_steps, self._pool_use = started.version, PoolUse(self._pools)
            self._telemetry = Telemetry(self._run, start_step=started.version)
            closing.callback(self._telemetry.close)
            steps = Steps(
                config.training,
                self._training_set,
                turns=turns,
                broker=self._broker,
                bring=self._group_submitter(turns),
                update_weights=self._pools.rollout.update_weights,
                hooks=StepHooks(before=self._before_step, after=self._after_step),
                step_timeout_s=config.learner.step_timeout_s,
            )
            await steps.run(started)
            with self._progress.phase("exporting the student"):
                await self._broker.poll(
                    "wait_exported",
                    deadline_s=config.learner.step_timeout_s,
                    waiting_for="the learner to export the student",
                )
            await self._evaluate_if_due(total)
            await self._broker.tell("dismiss")

    async def _before_step(self, step: int) -> None:
        if self._is_stopping:
            raise RunStoppedError(f"stopped on request after {step} steps; --resume continues from the last checkpoint")
        await self._evaluate_if_due(step)

    async def _handle_requests(self) -> None:
        """Do what a person asks through the controller, and tell how the run stands, until the run ends."""
        while True:
            state = self._state()
            await within(
                self._controller.publish.remote(state),
                deadline_s=_CONTROLLER_TIMEOUT_S,
                waiting_for="the run's controller",
            )
            request = await within(
                self._controller.next_request.remote(_LISTEN_S),
                deadline_s=_CONTROLLER_TIMEOUT_S,
                waiting_for="the run's controller",
            )
            if request is not None:
                logger.info("request=%s sizes=%s", request.kind, dict(request.sizes))
                self._is_stopping |= request.kind == "stop"
                for pool, size in request.sizes.items():
                    self._pools.scalable[pool].resize(size)

    def _state(self) -> RunState:
        return RunState(
            phase="stopping" if self._is_stopping else "running",
            step=self._trained_steps,
            total_steps=self._config.training.steps,
            pools={name: pool.state() for name, pool in self._pools.scalable.items()},
            metrics=self._last_metrics,
            updated_at=time.time(),
        )

    async def _evaluate_if_due(self, step: int) -> None:
        """Evaluate the policy that stands after `step` trained steps: before the first, after the last, and every so many between."""
        every, total = self._config.evaluation.every_steps, self._config.training.steps
        is_due = step in (0, total) or (every and step % every == 0)
        if not is_due or self._run.evaluation_at(step) is not None:
            return
        start = time.time()
        with self._progress.phase(
            f"evaluating after step {step}", total=len(self._evaluation_prompts.records)
        ) as phase:
            summary = await evaluate(
                self._pools.rollout,
                self._pools.verifiers,
                self._evaluation_prompts,
                self._config,
                label=f"step-{step}",
                on_prompt=phase.advance,
            )
        self._accuracy = summary.overall.mean
        self._telemetry.add_span("evaluation", f"step {step}", start, time.time())
        self._telemetry.record_evaluation(step, summary, time.time() - start)

    async def _after_step(self, trained: TrainedStep) -> None:
        metrics = {**self._metrics(trained), **await self._pool_use.idle_shares(trained.report.metrics)}
        times, number = trained.times, trained.number
        self._telemetry.record_step(number + 1, metrics)
        for group in trained.groups:
            self._telemetry.add_span(
                "rollout", group.sampled.uid, group.issued_at, group.sampled_at, worker=group.sampled.worker
            )
            self._telemetry.add_span("verifier", group.sampled.uid, group.sampled_at, group.judged_at)
            if group.teachers:
                self._telemetry.add_span("teacher", group.sampled.uid, group.sampled_at, group.scored_at)
        all_there_at = max(times.started_at, *(group.scored_at for group in trained.groups))
        self._telemetry.add_span("learner (exposed)", f"step {number}", all_there_at, times.trained_at)
        self._telemetry.add_span("weights", f"version {number + 1}", times.trained_at, times.weights_at)
        self._trained_steps, self._last_metrics = number + 1, metrics
        size = self._autoscaler.wanted(metrics, self._pool_sizes(), self._pools.rollout.state())
        if size is not None:
            logger.info("autoscale=rollout workers=%d step=%d", size, number)
            self._pools.rollout.resize(size)
        self._progress.step(number + 1, metrics, self._accuracy, self._pool_sizes())

    def _bounds(self) -> dict[str, PoolBounds]:
        """Within which each pool may be scaled."""
        rollout = self._config.rollout
        bounds = {pool: PoolBounds() for pool in self._pools.scalable}
        return {**bounds, "rollout": PoolBounds(at_least=rollout.min_workers, at_most=rollout.max_workers)}

    def _pool_sizes(self) -> dict[str, int]:
        """As they are wanted now."""
        return pool_sizes(self._config, {name: pool.state().target for name, pool in self._pools.scalable.items()})

    def _metrics(self, trained: TrainedStep) -> dict[str, float]:
        return step_metrics(trained.number, trained.groups, trained.times, trained.report.metrics)


def _log_listener_failure(listening: asyncio.Task[None]) -> None:
    """A run goes on without its controller; it can no longer be asked for anything."""
    if not listening.cancelled() and (error := listening.exception()) is not None:
        logger.warning("the run takes no more requests error=%s", error)
