"""Pools that serve a run: rollout workers, teachers, the reference and verifiers. Started together, closed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle

from actors.health.monitor import HeartbeatMonitor
from actors.pool.placement import HEAD_POOL, reward_pool_name, selector_of
from actors.pool.pool import Scalable
from actors.rollout.pool import RolloutPool
from actors.teacher.client import Teacher, TeacherClient
from actors.teacher.deployment import TeacherReplicas, attach_teacher, delete_teacher, deploy_teacher
from actors.teacher.remote import attach_remote_teacher
from actors.teacher.replica import ReplicaAnnouncement
from actors.verifier.reward_pool import VerdictPools
from actors.weights.transports import WeightTransport
from pipelines.cluster.node_models import PoolModel, fetch_on_nodes
from pipelines.resolution.models import ResolvedModels
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.resolution.sampling import sampling_tokens
from pipelines.resolution.teacher_context import longest_prompts, require_context
from pipelines.resolution.teacher_routing import require_can_score
from pipelines.run.progress import RunProgress
from pipelines.training.deadlines import together
from rlad.config import EvaluationSuite, RunConfig, ServiceTeacherConfig, SharedTeacherConfig
from rlad.data.chat import load_tokenizer, tokenizer_fingerprint
from rlad.models.locations import fetch_model
from rlad.tokenizers.stopping import SamplingTokens
from rlad.verifiers import reward_models


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Handles of the running pools.

    Attributes:
        rollout: Rollout workers.
        verifiers: Verifiers and reward models.
        teachers: Teachers by id; empty if the objective uses none.
        reference: The reference policy; None if the objective uses none.
        own_teachers: Teachers that the run has deployed, the reference included, by pool.
        scalable: The run's own pools, whose size may change during the run, by name.
    """

    rollout: RolloutPool
    verifiers: VerdictPools
    teachers: dict[str, Teacher]
    reference: Teacher | None
    own_teachers: Mapping[str, TeacherClient]
    scalable: Mapping[str, Scalable]


@asynccontextmanager
async def open_pools(
    run: ResolvedRun, *, transport: WeightTransport | None, owner: ActorHandle, monitor: HeartbeatMonitor
) -> AsyncIterator[Pools]:
    """Start all pools of a run concurrently, and close them at the end of the block, also after an error.

    Shared teachers are joined before any pool starts, and left running at the end.

    Args:
        run: The resolved run.
        transport: How weight updates travel to the rollout workers; None if the weights stay those of the start.
        owner: Actor of this driver. If the driver dies, the run's own teachers are deleted.
        monitor: Ends workers and replicas whose process was stopped.
    """
    config = run.config
    rollout = _rollout_pool(config, run.models, run.sampling, run_id=run.run_id, transport=transport, monitor=monitor)
    verifiers = _verdict_pools(config, run.models, monitor)
    scoring = config.scoring_pools
    async with AsyncExitStack() as closing:
        clients: dict[str, Teacher] = {}
        for name, shared in config.shared_teachers.items():
            clients[name] = await _join(shared, name, run, closing)
        closing.push_async_callback(rollout.close)
        for pool in verifiers.pools:
            closing.push_async_callback(pool.close)
        if scoring:
            closing.push_async_callback(_delete_all, [f"{run.run_id}-{pool}" for pool in scoring])
        starts: list[Coroutine[Any, Any, Any]] = [rollout.start(), *(pool.start() for pool in verifiers.pools)]
        deployments = [_deploy(pool, run, owner) for pool in scoring]
        started = await together(*deployments, *starts)
        own_teachers: dict[str, TeacherClient] = dict(zip(scoring, started[: len(deployments)], strict=True))
        clients |= own_teachers
        replicas = {
            pool: TeacherReplicas(f"{run.run_id}-{pool}", replicas=model.replicas) for pool, model in scoring.items()
        }
        for each in replicas.values():
            closing.callback(each.close)
        yield Pools(
            rollout=rollout,
            verifiers=verifiers,
            teachers={name: clients[pool] for name, pool in config.teacher_pools.items()},
            reference=clients.get("reference"),
            own_teachers=own_teachers,
            scalable={"rollout": rollout, "verifier": verifiers.pools[0], **replicas},
        )


@asynccontextmanager
async def open_evaluation_pools(
    suite: EvaluationSuite, models: ResolvedModels, *, run_id: str
) -> AsyncIterator[tuple[RolloutPool, VerdictPools]]:
    """Start the pools of an evaluation, rollout workers and verifiers, and close them at the end of the block."""
    student = fetch_model(models.student.location, weights=False)
    sampling = sampling_tokens(load_tokenizer(student), student, suite)
    monitor = heartbeat_monitor(suite, run_id)
    rollout = _rollout_pool(suite, models, sampling, run_id=run_id, transport=None, monitor=monitor)
    verifiers = _verdict_pools(suite, models, monitor)
    async with AsyncExitStack() as closing:
        await closing.enter_async_context(monitor.running())
        closing.push_async_callback(rollout.close)
        for pool in verifiers.pools:
            closing.push_async_callback(pool.close)
        await together(rollout.start(), *(pool.start() for pool in verifiers.pools))
        yield rollout, verifiers


def heartbeat_monitor(config: RunConfig | EvaluationSuite, run_id: str) -> HeartbeatMonitor:
    """Return the monitor of a run or an evaluation."""
    failures = config.failures
    return HeartbeatMonitor(run_id, heartbeat_s=failures.heartbeat_s, missed_heartbeats=failures.missed_heartbeats)


def pool_models(config: RunConfig | EvaluationSuite, models: ResolvedModels) -> list[PoolModel]:
    """Return the models that the workers of each pool load."""
    student, rollout = models.student.location, config.rollout
    found = [PoolModel(pool="rollout", location=student, on_gpu=rollout.gpus_per_worker > 0)]
    if isinstance(config, RunConfig):
        learner_on_gpu = config.learner.gpus_per_rank > 0
        found.append(PoolModel(pool="learner", location=student, on_gpu=learner_on_gpu))
        if (sender := config.hidden_state_teacher) is not None:  # the learner reads the output layer
            location = models.frozen[sender[0]].location
            found.append(PoolModel(pool="learner", location=location, on_gpu=learner_on_gpu))
        for pool, model in models.frozen.items():
            gpus = config.frozen_models[pool].gpus_per_replica
            if pool == "teacher" and config.offline is not None:
                gpus = config.offline.generator_of(rollout).gpus_per_worker
            found.append(PoolModel(pool=pool, location=model.location, on_gpu=gpus > 0))
    rewards = reward_models(config.verifiers)
    return found + [
        PoolModel(pool=reward_pool_name(task), location=model.location, on_gpu=rewards[task].gpus_per_worker > 0)
        for task, model in models.rewards.items()
    ]


def fetch_for_pools(config: RunConfig | EvaluationSuite, models: ResolvedModels, progress: RunProgress) -> None:
    """Download the models of all pools on every node that may run their workers.

    Raises:
        RladError: The error of a download.
    """
    states = fetch_on_nodes(config.cluster, pool_models(config, models))
    first = next(states, None)
    if first is None:
        return
    with progress.phase("downloading models to the nodes", total=first[1]) as phase:
        for finished, total in states:
            phase.advance(f"{finished} of {total} nodes")


def _rollout_pool(
    config: RunConfig | EvaluationSuite,
    models: ResolvedModels,
    sampling: SamplingTokens,
    *,
    run_id: str,
    transport: WeightTransport | None,
    monitor: HeartbeatMonitor,
) -> RolloutPool:
    return RolloutPool(
        config.rollout,
        model_path=models.student.location,
        dtype=config.student.dtype,
        seed=config.seed,
        start_timeout_s=config.cluster.start_timeout_s,
        run_id=run_id,
        label_selector=selector_of(config.cluster, "rollout"),
        updates_in_flight=isinstance(config, RunConfig) and config.training.max_staleness > 0,
        transport=transport,
        tokens=sampling,
        monitor=monitor,
        failures=config.failures,
    )


def _verdict_pools(
    config: RunConfig | EvaluationSuite, models: ResolvedModels, monitor: HeartbeatMonitor
) -> VerdictPools:
    return VerdictPools(
        config.verifier_pool,
        models.verifiers(config),
        tokenizer_path=models.student.location,
        start_timeout_s=config.cluster.start_timeout_s,
        cluster=config.cluster,
        monitor=monitor,
    )


async def require_shared_teachers(run: ResolvedRun) -> None:
    """Check that the shared teachers of a run answer and can score its responses.

    Raises:
        RladError: A teacher does not run, or cannot score what the run needs.
    """
    async with AsyncExitStack() as closing:
        for name, shared in run.config.shared_teachers.items():
            await _join(shared, name, run, closing)


async def _join(shared: SharedTeacherConfig, pool: str, run: ResolvedRun, closing: AsyncExitStack) -> Teacher:
    """Join a teacher that runs independently of this run.

    Raises:
        RladError: The teacher does not run, or cannot score what the run needs.
    """
    cluster, fingerprint = run.config.cluster, run.tokenizer_fingerprint
    client: Teacher
    if isinstance(shared, ServiceTeacherConfig):
        client, identity = await attach_teacher(
            shared, client=run.run_id, tokenizer_fingerprint=fingerprint, start_timeout_s=cluster.start_timeout_s
        )
    else:
        remote, identity = await attach_remote_teacher(
            shared,
            client=run.run_id,
            tokenizer_fingerprint=fingerprint,
            label_selector=selector_of(cluster, HEAD_POOL),
        )
        closing.callback(remote.close)
        client = remote
    require_can_score(pool, identity, run.config, student=run.student)
    if identity.context_tokens:
        longest = longest_prompts(run.config, run.prompts, run.teachers_by_prompt, run.teacher_prompts)[pool]
        require_context(
            pool, identity.context_tokens, longest, max_response_tokens=run.config.rollout.max_response_tokens
        )
    return client


async def _deploy(pool: str, run: ResolvedRun, owner: ActorHandle) -> TeacherClient:
    """Deploy a frozen model of the run as a Serve application."""
    local = run.config.scoring_pools[pool].model_copy(update={"path": run.models.frozen[pool].location})
    return await deploy_teacher(
        local,
        app_name=f"{run.run_id}-{pool}",
        # The vocabularies are compared at the start of the run. The teacher may have further tokens.
        tokenizer_fingerprint=await asyncio.to_thread(tokenizer_fingerprint, run.frozen_models[pool]),
        start_timeout_s=run.config.cluster.start_timeout_s,
        label_selector=selector_of(run.config.cluster, pool),
        owner=owner,
        vocabulary_size=run.vocabulary.size,
        announced=ReplicaAnnouncement(run_id=run.run_id, pool=pool),
    )


async def _delete_all(app_names: Iterable[str]) -> None:
    """Delete applications concurrently: one that does not end must not delay the others."""
    outcomes = await asyncio.gather(*(delete_teacher(name) for name in app_names), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
