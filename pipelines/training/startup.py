"""Start-up of a run on a connected cluster: broker, learner, pools and controller, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.controller import start_controller
from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker, StepReport
from actors.health.monitor import HeartbeatMonitor
from actors.learner.group import LearnerGroup
from actors.learner.settings import LearnerSettings, TeacherOutput
from actors.pool.placement import HEAD_POOL, selector_of
from actors.weights.transports import weight_transport
from pipelines.cluster.live_run import record_cluster
from pipelines.monitoring.cost_meter import CostMeter
from pipelines.monitoring.run_metrics import RunMetrics
from pipelines.monitoring.trackers.opening import Trackers, open_trackers
from pipelines.monitoring.trackers.tracker import TrackedRun
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.progress import RunProgress
from pipelines.run.telemetry import Telemetry
from pipelines.training.broker_client import BrokerClient
from pipelines.training.control import RunControl, scaling_bounds
from pipelines.training.pools import Pools, open_pools
from pipelines.training.samples import SampleLogger, open_sample_log
from rlad.config import RunConfig

# A restart costs seconds. The limit ends a run whose broker cannot work, for example for lack of memory.
_BROKER_RESTARTS = 100
# Pause between two attempts to reach a broker that is being restarted.
_RESTART_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Services of a run while it trains.

    Attributes:
        broker: Client of the broker.
        pools: The pools.
        control: Handles requests to scale or stop the run.
        telemetry: Records metrics, evaluations and the timeline.
        started: The learner's report on its start.
        used_uids: Uids of the groups that the learner's checkpoint contains.
        samples: Logs sampled groups; None if the run logs none.
        trackers: The trackers, which `telemetry` serves.
        metrics: Metrics for Prometheus.
        cost: Measures the cost of the run.
    """

    broker: BrokerClient
    pools: Pools
    control: RunControl
    telemetry: Telemetry
    started: StepReport
    used_uids: list[str]
    samples: SampleLogger | None
    trackers: Trackers
    metrics: RunMetrics
    cost: CostMeter


def start_broker(run: ResolvedRun, *, group_size: int) -> ActorHandle:
    """Start the broker. It writes the ledger and holds the references to all groups.

    On a labelled cluster it stays with the driver, on the head node, which an autoscaler never removes. If its process
    dies, Ray restarts it under the same handle.
    """
    broker = ray.remote(ExperienceBroker).options(
        num_cpus=0, max_restarts=_BROKER_RESTARTS, label_selector=selector_of(run.config.cluster, HEAD_POOL)
    )
    return broker.remote(str(run.directory.ledger), shard_policy(run.config), group_size)


async def watch_broker(monitor: HeartbeatMonitor, broker: ActorHandle, *, deadline_s: float) -> NoReturn:
    """Watch the process of the broker, and of each one that Ray starts in its place.

    Args:
        monitor: Monitor of the run.
        broker: The broker.
        deadline_s: Deadline for a new process to be up, seconds.

    Raises:
        RayActorError: The broker has died for good, or was not up in time.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + deadline_s
    while True:
        lost = asyncio.Event()

        def on_lost(_: str, lost: asyncio.Event = lost) -> None:
            lost.set()

        try:
            await monitor.watch(broker, "broker", deadline_s=deadline_s, on_lost=on_lost)
        except RayActorError:  # also while Ray restarts it
            if clock() > deadline:
                raise
            await asyncio.sleep(_RESTART_PAUSE_S)
            continue
        await lost.wait()  # unlimited wait: the monitor reports the end of the process
        deadline = clock() + deadline_s


def shard_policy(config: RunConfig) -> ShardPolicy:
    """Return the rules by which a run's groups become batch shards."""
    return ShardPolicy(
        ranks=config.learner.sequence_groups,
        token_budget=config.learner.micro_batch_tokens,
        skip_equal_rewards=config.objective.zero_advantage_gives_zero_gradient,
        skip_truncated=config.learner.truncated == "mask",
        counts_tokens=config.objective.aggregation == "token_mean",
        passes=config.training.passes,
    )


def start_learner(run: ResolvedRun, broker: ActorHandle) -> LearnerGroup:
    """Start the learner's ranks. They report to the broker when they are ready."""
    # A shared teacher does not know the student's vocabulary, so its likeliest tokens may include padding.
    is_support_padded = run.config.objective.teacher_support is not None and run.config.shared_teachers
    settings = LearnerSettings.of(
        run.config,
        student=run.models.student.location,
        run_dir=run.directory.path,
        broker=broker,
        vocabulary_size=None if is_support_padded else run.sampling.vocabulary_size,
        run_id=run.run_id,
        teacher_output=_teacher_output(run),
    )
    learner = LearnerGroup(settings, run_id=run.run_id)
    learner.start()
    return learner


def _teacher_output(run: ResolvedRun) -> TeacherOutput | None:
    teacher = run.config.hidden_state_teacher
    if teacher is None:
        return None
    pool, settings = teacher
    return TeacherOutput(model=run.models.frozen[pool].location, dtype=settings.dtype)


def _tracked(run: ResolvedRun, *, start_step: int) -> TrackedRun:
    return TrackedRun(
        run_id=run.run_id,
        config=run.config.model_dump(mode="json"),
        folder=run.directory.tracking,
        tensorboard=run.directory.tensorboard,
        start_step=start_step,
    )


@asynccontextmanager
async def open_services(
    run: ResolvedRun,
    broker: ActorHandle,
    client: BrokerClient,
    progress: RunProgress,
    monitor: HeartbeatMonitor,
    cost: CostMeter,
) -> AsyncIterator[Services]:
    """Start pools and controller, and wait for the learner. Everything is closed at the end of the block.

    Args:
        run: The resolved run.
        broker: Handle of the broker.
        client: The driver's client of the broker.
        progress: Shows the start.
        monitor: Watches the processes.
        cost: Counts the workers of the pools.

    Raises:
        RladError: A pool or the learner did not start, or a teacher differs from the one that the run started with.
    """
    config = run.config
    transport = weight_transport(config.weights.transport, broker)
    async with AsyncExitStack() as closing:
        teachers = "teachers, " if config.scoring_pools else ""
        with progress.phase(f"starting rollout workers, {teachers}verifiers and learner"):
            pools = await closing.enter_async_context(
                open_pools(run, transport=transport, owner=broker, monitor=monitor)
            )
            cost.follow(pools.scalable)
            run.directory.record_teachers({name: each.teacher for name, each in pools.teachers.items()})
            started = await client.wait_started(deadline_s=config.cluster.start_timeout_s)
        controller = start_controller(
            run.run_id, scaling_bounds(config, pools), label_selector=selector_of(config.cluster, HEAD_POOL)
        )
        closing.callback(ray.kill, controller)
        record_cluster(run.directory, run.run_id)
        closing.callback(run.directory.cluster.unlink, missing_ok=True)
        await monitor.watch(controller, "controller", deadline_s=config.cluster.start_timeout_s)
        metrics = RunMetrics(run.run_id, total_steps=config.training.steps, trained_steps=started.version)
        control = RunControl(config, pools, controller, monitor, trained_steps=started.version, metrics=metrics)
        control.start()
        closing.callback(control.close)
        used_uids = await client.reopen(started.version)
        trackers = open_trackers(config.tracking, _tracked(run, start_step=started.version))
        closing.push_async_callback(asyncio.to_thread, trackers.close)
        telemetry = Telemetry(run.directory, start_step=started.version, figure_logs=[trackers, metrics])
        closing.callback(telemetry.close)
        samples = await closing.enter_async_context(open_sample_log(run, last_step=started.version))
        yield Services(
            broker=client,
            pools=pools,
            control=control,
            telemetry=telemetry,
            started=started,
            used_uids=used_uids,
            samples=samples,
            trackers=trackers,
            metrics=metrics,
            cost=cost,
        )
