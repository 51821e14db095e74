"""The pools that serve a run: rollout workers, teachers, the reference, verifiers. Started together, closed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actors.pool.placement import HEAD_POOL, selector_of
from actors.pool.pool import Scalable
from actors.rollout.pool import RolloutPool
from actors.teacher.client import Teacher, TeacherClient
from actors.teacher.deployment import TeacherReplicas, attach_teacher, delete_teacher, deploy_teacher
from actors.teacher.remote import attach_remote_teacher
from actors.verifier.reward_pool import VerdictPools
from actors.weights.transports import WeightTransport
from pipelines.training.deadlines import together
from pipelines.training.teacher_routing import require_can_score
from rlad.config import (
    ClusterConfig,
    EvaluationSuite,
    RunConfig,
    ServiceTeacherConfig,
    SharedTeacherConfig,
    TeacherConfig,
)
from rlad.data.chat import tokenizer_fingerprint
from rlad.models.references import resolve_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Handles to the running pools.

    Attributes:
        teachers: by id; empty where the objective uses none.
        reference: None where the objective uses none.
        own_teachers: those that the run has deployed, the reference among them, by pool.
        scalable: pools of the run's own, whose size may change while it lives, by name.
    """

    rollout: RolloutPool
    verifiers: VerdictPools
    teachers: dict[str, Teacher]
    reference: Teacher | None
    own_teachers: Mapping[str, TeacherClient]
    scalable: Mapping[str, Scalable]


@asynccontextmanager
async def open_pools(
    config: RunConfig | EvaluationSuite, *, run_id: str, transport: WeightTransport | None = None
) -> AsyncIterator[Pools]:
    """Start every pool at once and close them at the end of the block, whatever happens in it. An evaluation has neither teachers nor a reference.

    Teachers that are there already are joined before anything starts, and left as they are at the end.

    Args:
        transport: of new weights to the rollout workers; by default the object store.
    """
    student = str(resolve_model(config.student.path))
    timeout_s = config.cluster.start_timeout_s
    rollout = RolloutPool(
        config.rollout,
        model_path=student,
        dtype=config.student.dtype,
        seed=config.seed,
        start_timeout_s=timeout_s,
        run_id=run_id,
        label_selector=selector_of(config.cluster, "rollout"),
        updates_in_flight=isinstance(config, RunConfig) and config.training.max_staleness > 0,
        transport=transport,
    )
    verifiers = VerdictPools(
        config.verifier_pool,
        config.verifiers,
        tokenizer_path=student,
        start_timeout_s=timeout_s,
        cluster=config.cluster,
    )
    async with AsyncExitStack() as closing:
        clients: dict[str, Teacher] = {}
        if isinstance(config, RunConfig):
            for name, shared in config.shared_teachers.items():
                clients[name] = await _join(shared, name, config, run_id, closing)
        closing.push_async_callback(rollout.close)
        for pool in verifiers.pools:
            closing.push_async_callback(pool.close)
        starting: list[Coroutine[Any, Any, Any]] = [rollout.start(), *(pool.start() for pool in verifiers.pools)]
        num_ours = len(starting)
        scoring, teacher_pools = (
            (config.scoring_pools, config.teacher_pools) if isinstance(config, RunConfig) else ({}, {})
        )
        if scoring:
            closing.push_async_callback(_delete_all, [f"{run_id}-{pool}" for pool in scoring])
            fingerprint = tokenizer_fingerprint(student)
            starting += [
                _deploy(model, name, f"{run_id}-{name}", fingerprint, config.cluster) for name, model in scoring.items()
            ]
        started = await together(*starting)
        clients |= zip(scoring, started[num_ours:], strict=True)
        teachers = {name: clients[pool] for name, pool in teacher_pools.items()}
        replicas = {
            pool: TeacherReplicas(f"{run_id}-{pool}", replicas=model.replicas) for pool, model in scoring.items()
        }
        for each in replicas.values():
            closing.callback(each.close)
        scalable: dict[str, Scalable] = {"rollout": rollout, "verifier": verifiers.pools[0], **replicas}
        yield Pools(
            rollout=rollout,
            verifiers=verifiers,
            teachers=teachers,
            reference=clients.get("reference"),
            own_teachers=dict(zip(scoring, started[num_ours:], strict=True)),
            scalable=scalable,
        )


async def _join(
    shared: SharedTeacherConfig, pool: str, config: RunConfig, run_id: str, closing: AsyncExitStack
) -> Teacher:
    """Join a teacher that runs without us.

    Raises:
        RladError: it is not there, or cannot score what the run wants scored.
    """
    fingerprint = tokenizer_fingerprint(str(resolve_model(config.student.path)))
    client: Teacher
    if isinstance(shared, ServiceTeacherConfig):
        client, identity = await attach_teacher(
            shared, client=run_id, tokenizer_fingerprint=fingerprint, start_timeout_s=config.cluster.start_timeout_s
        )
    else:
        selector = selector_of(config.cluster, HEAD_POOL)
        remote, identity = await attach_remote_teacher(
            shared, client=run_id, tokenizer_fingerprint=fingerprint, label_selector=selector
        )
        closing.callback(remote.close)
        client = remote
    require_can_score(pool, identity, config)
    return client


async def _deploy(
    config: TeacherConfig, pool: str, app_name: str, fingerprint: str, cluster: ClusterConfig
) -> TeacherClient:
    local = config.model_copy(update={"path": str(resolve_model(config.path))})
    return await deploy_teacher(
        local,
        app_name=app_name,
        tokenizer_fingerprint=fingerprint,
        start_timeout_s=cluster.start_timeout_s,
        label_selector=selector_of(cluster, pool),
    )


async def _delete_all(app_names: Iterable[str]) -> None:
    """All of them at once: one that does not end keeps no other from ending."""
    outcomes = await asyncio.gather(*(delete_teacher(name) for name in app_names), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
