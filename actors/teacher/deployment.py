"""Teachers as named Serve applications: deployed for one run, or as a service that several runs share."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray import serve
from ray.serve import Application

from actors.pool.pool import PoolState
from actors.teacher.client import CONTROL_TIMEOUT_S, TeacherClient, ask_identity
from actors.teacher.replica import TeacherServer
from actors.teacher.serve import (
    QUIET,
    delete_application,
    deploy_application,
    deployment_handle,
    running_replicas,
    serve_status,
    set_replicas,
    short_pauses,
    wait_until_running,
)
from rlad.config import ServiceTeacherConfig, TeacherConfig, TeacherServiceConfig
from rlad.errors import PlanError, RladError, VocabularyMismatchError
from rlad.teacher.wire_format import TeacherIdentity

logger = logging.getLogger(__name__)

SHARED_TEACHER = "SharedTeacher"
"""Name of the scoring deployment of every service; a run's own teacher has another."""

# How often Serve asks a replica for its health. A dead replica is found, and replaced, no sooner than that.
_HEALTH_CHECK_PERIOD_S = 1.0
# How long a replica may take to answer, three times in a row, before it is replaced: a machine under load is slow, its replicas are not broken.
_HEALTH_CHECK_TIMEOUT_S = 60.0
# How long a replica that is being removed may go on with the groups it has.
_DRAIN_S = 20.0


async def deploy_teacher(
    config: TeacherConfig,
    *,
    app_name: str,
    tokenizer_fingerprint: str,
    start_timeout_s: float,
    label_selector: dict[str, str] | None = None,
) -> TeacherClient:
    """Deploy a teacher for one run and wait until all its replicas are up.

    Args:
        config: with `path` a model directory that the replicas' nodes can read.
        app_name: of the Serve application; one of this name that is already there is replaced.
        tokenizer_fingerprint: of the student.
        start_timeout_s: deadline.
        label_selector: of the nodes that the replicas may run on; any by default.

    Raises:
        EngineError: the engine does not start on this model.
        VocabularyMismatchError: teacher and student do not share a vocabulary. The teacher is taken down again.
        DeadlineError: replicas were not up in time.
        PlanError: Serve is set up so that results cannot be passed by reference.
    """
    application = teacher_application(config, label_selector=label_selector or {})
    try:
        handle = await deploy_application(
            application, app_name=app_name, start_timeout_s=start_timeout_s, is_scaled_from_outside=True
        )
        identity = await ask_identity(handle, who=_who(app_name))
        require_tokenizer(identity, tokenizer_fingerprint, who=f"{_who(app_name)} ({config.path})")
    except RladError:
        await delete_teacher(app_name)
        raise
    logger.info(
        "teacher=%s fingerprint=%s engine=%s replicas=%d", app_name, identity.teacher, config.engine, config.replicas
    )
    return TeacherClient(
        handle=handle,
        app_name=app_name,
        teacher=identity.teacher,
        tokenizer_fingerprint=tokenizer_fingerprint,
        client=app_name,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
    )


async def attach_teacher(
    config: ServiceTeacherConfig, *, client: str, tokenizer_fingerprint: str, start_timeout_s: float
) -> tuple[TeacherClient, TeacherIdentity]:
    """Join a teacher service of this Ray cluster.

    Args:
        client: who will ask, for quotas.
        tokenizer_fingerprint: of the student.
        start_timeout_s: deadline, for a service that is just being deployed.

    Raises:
        PlanError: there is no service of this name, or it is another model than `config.fingerprint`.
        VocabularyMismatchError: teacher and student do not share a vocabulary.
        EngineError, DeadlineError: it does not come up.
    """
    name, who = config.service, f"teacher service {config.service!r}"
    handle = await find_service(name)
    await wait_until_running(name, deadline=time.monotonic() + start_timeout_s)
    identity = await ask_identity(handle, who=who, max_retries=config.max_retries)
    require_tokenizer(identity, tokenizer_fingerprint, who=who)
    require_fingerprint(identity, config.fingerprint, who=who)
    attached = TeacherClient(
        handle=handle,
        app_name=name,
        teacher=identity.teacher,
        tokenizer_fingerprint=tokenizer_fingerprint,
        client=client,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
    )
    return attached, identity


def require_tokenizer(identity: TeacherIdentity, tokenizer_fingerprint: str, *, who: str) -> None:
    """
    Raises:
        VocabularyMismatchError: teacher and student do not share a vocabulary.
    """
    if identity.tokenizer != tokenizer_fingerprint:
        raise VocabularyMismatchError(
            f"{who} has tokenizer {identity.tokenizer}, the student has {tokenizer_fingerprint}: "
            "their token ids mean different things; use a teacher and a student with one vocabulary"
        )


def require_fingerprint(identity: TeacherIdentity, fingerprint: str | None, *, who: str) -> None:
    """
    Raises:
        PlanError: it is another model than the configuration wants.
    """
    if fingerprint is not None and identity.teacher != fingerprint:
        raise PlanError(
            f"{who} is the model {identity.teacher}, the configuration wants {fingerprint}: correct `fingerprint`, or leave it out"
        )


async def delete_teacher(app_name: str) -> None:
    """Take a run's teacher down, after the groups that it has. Does nothing where there is none of this name.

    Raises:
        DeadlineError: it did not end in time.
    """
    await delete_application(app_name, timeout_s=_DRAIN_S + CONTROL_TIMEOUT_S)


def teacher_application(config: TeacherConfig, *, label_selector: dict[str, str]) -> Application:
    """The Serve application of one run's teacher, undeployed.

    Args:
        config: with `path` a model directory that the replicas' nodes can read.
        label_selector: of those nodes; an empty one takes any.
    """
    options = _replica_options(
        config, label_selector, replicas=config.replicas, drain_s=_DRAIN_S, health_timeout_s=_HEALTH_CHECK_TIMEOUT_S
    )
    deployment = serve.deployment(TeacherServer).options(num_replicas=config.replicas, **options)
    return deployment.bind(config)


class TeacherReplicas:
    """The size of a run's own teacher, while it scores. Belongs to one event loop."""

    def __init__(self, app_name: str, *, replicas: int) -> None:
        """
        Args:
            app_name: of a teacher that `deploy_teacher` has deployed.
            replicas: that it has.
        """
        self._app_name = app_name
        self._target = self._running = replicas
        self._changing: asyncio.Task[None] | None = None

    def state(self) -> PoolState:
        return PoolState(
            target=self._target,
            ready=self._running,
            starting=max(0, self._target - self._running),
            draining=max(0, self._running - self._target),
        )

    def resize(self, replicas: int) -> None:
        """Have Serve add replicas, or take some away once they have finished what they have. Replicas that cannot be placed are waited for by Serve."""
        logger.info("teacher=%s state=resized from=%d to=%d", self._app_name, self._target, replicas)
        self._target = replicas
        if self._changing is None or self._changing.done():
            self._changing = asyncio.create_task(self._change())

    def close(self) -> None:
        if self._changing is not None:
            self._changing.cancel()

    async def _change(self) -> None:
        """Tell Serve, again where the target moves meanwhile, and look until there are as many as wanted."""
        told: int | None = None
        try:
            while told != self._target or self._running != self._target:
                if told != self._target:
                    told = self._target
                    await set_replicas(TeacherServer.__name__, self._app_name, told)
                self._running = await running_replicas(self._app_name)
                await asyncio.sleep(_HEALTH_CHECK_PERIOD_S)
        except RladError as error:
            logger.warning("teacher=%s state=not_resized reason=%s", self._app_name, error)


def shared_teacher_application(config: TeacherServiceConfig, *, label_selector: dict[str, str]) -> Application:
    """The Serve application of a service's replicas, undeployed: with quotas, and between `replicas` and `max_replicas` of them by the groups under way."""
    if config.max_replicas is None:
        size: dict[str, Any] = {"num_replicas": config.replicas}
    else:
        # A client that is refused waits elsewhere, so what it has under way never passes its quota: half of that for long wants another replica.
        target = config.target_groups or max(1, config.client_quota // 2)
        size = {
            "autoscaling_config": {
                "min_replicas": config.replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": target,
            }
        }
    replicas = config.max_replicas or config.replicas
    options = _replica_options(
        config, label_selector, replicas=replicas, drain_s=config.drain_s, health_timeout_s=config.health_timeout_s
    )
    deployment = serve.deployment(TeacherServer).options(name=SHARED_TEACHER, **size, **options)
    # What an engine goes by, without what is Serve's or the gateway's matter.
    engine = TeacherConfig.model_validate(config.model_dump(include=TeacherConfig.model_fields.keys() - {"replicas"}))
    return deployment.bind(engine, max_groups_per_client=config.client_quota)


def _replica_options(
    config: TeacherConfig, label_selector: dict[str, str], *, replicas: int, drain_s: float, health_timeout_s: float
) -> dict[str, Any]:
    return {
        # Serve's default of 5 would leave an engine that batches idle.
        "max_ongoing_requests": config.max_ongoing_requests,
        "request_router_config": short_pauses(replicas),
        "ray_actor_options": {
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
            "label_selector": label_selector,
        },
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": health_timeout_s,
        "graceful_shutdown_timeout_s": drain_s,
        "graceful_shutdown_wait_loop_s": 0.1,
        # A model that cannot be loaded does not load at the twentieth try either.
        "max_constructor_retry_count": 2,
        "logging_config": QUIET,
    }


async def find_service(name: str) -> Any:
    """Handle of the replicas of a teacher service on this cluster, which one with HTTP has behind its gateway.

    Raises:
        PlanError: there is none of this name.
    """
    services = await service_names()
    if name not in services:
        raise PlanError(
            f"there is no teacher service {name!r} on this Ray cluster (there {'are ' + ', '.join(services) if services else 'is none'}): "
            "deploy it with `rlad teacher deploy`, or give the teacher's `path:`"
        )
    return await deployment_handle(SHARED_TEACHER, name)


async def service_names() -> list[str]:
    """Teacher services on this cluster."""
    status = await serve_status()
    return (
        []
        if status is None
        else [name for name, each in status.applications.items() if SHARED_TEACHER in each.deployments]
    )


def _who(app_name: str) -> str:
    return f"teacher {app_name!r}"
