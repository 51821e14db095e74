"""Teachers as named Serve applications, for one run or as a service that several runs share."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray import serve
from ray.actor import ActorHandle
from ray.serve import Application

from actors.pool.pool import PoolState
from actors.teacher.client import CONTROL_TIMEOUT_S, TeacherClient, ask_identity
from actors.teacher.replica import ReplicaAnnouncement, TeacherServer
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
"""Name of the scoring deployment of a teacher service. A run's own teacher uses another name."""

# Period of Serve's health checks. It bounds how soon a dead replica is detected and replaced.
_HEALTH_CHECK_PERIOD_S = 1.0
# Serve replaces a replica after three health checks in a row without an answer within this time. A loaded machine
# answers slowly although its replicas are healthy.
_HEALTH_CHECK_TIMEOUT_S = 60.0
# Time that a replica gets to finish its groups before it is removed.
_DRAIN_S = 20.0


async def deploy_teacher(
    config: TeacherConfig,
    *,
    app_name: str,
    tokenizer_fingerprint: str,
    start_timeout_s: float,
    label_selector: dict[str, str] | None = None,
    owner: ActorHandle | None = None,
    vocabulary_size: int | None = None,
    announced: ReplicaAnnouncement | None = None,
) -> TeacherClient:
    """Deploy a teacher for one run and wait until all its replicas run.

    Args:
        config: Settings of the teacher. `path` is the location of the model.
        app_name: Name of the Serve application. An existing application of this name is replaced.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer, or of the teacher's where the caller has compared
            the two.
        start_timeout_s: Deadline in seconds.
        label_selector: Nodes on which the replicas may run; any node by default.
        owner: Actor of the driver. If it dies, the teacher is deleted; without one the teacher stays until it is
            deleted.
        vocabulary_size: Number of token ids that the student has. Later ids get probability 0; by default none.
        announced: Monitor to which the replicas announce themselves; by default none.

    Raises:
        EngineError: The engine does not start with this model.
        VocabularyMismatchError: Teacher and student do not share a vocabulary. The teacher is deleted again.
        DeadlineError: The replicas did not start in time.
        PlanError: Serve is configured so that results cannot be passed by reference.
    """
    application = teacher_application(
        config,
        label_selector=label_selector or {},
        owner=owner,
        vocabulary_size=vocabulary_size,
        announced=announced,
    )
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
    """Connect to a teacher service of this Ray cluster.

    Args:
        config: Name, expected fingerprint and limits of the service.
        client: Name of this client, for quotas.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer.
        start_timeout_s: Deadline in seconds for a service that is still starting.

    Raises:
        PlanError: There is no service of this name, or it serves another model than `config.fingerprint`.
        VocabularyMismatchError: Teacher and student do not share a vocabulary.
        EngineError, DeadlineError: The service does not start.
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
    """Check that a teacher uses the student's tokenizer, or one that adds tokens to it.

    Raises:
        VocabularyMismatchError: Teacher and student do not share a vocabulary.
    """
    if not identity.reads(tokenizer_fingerprint):
        raise VocabularyMismatchError(
            f"{who} has tokenizer {identity.tokenizer}, the student has {tokenizer_fingerprint}, so their token ids "
            "differ in meaning; use a teacher and a student with one vocabulary (the teacher may have added tokens)"
        )


def require_fingerprint(identity: TeacherIdentity, fingerprint: str | None, *, who: str) -> None:
    """Check that a teacher serves the model that the configuration expects.

    Raises:
        PlanError: The teacher's fingerprint differs from `fingerprint`.
    """
    if fingerprint is not None and identity.teacher != fingerprint:
        raise PlanError(
            f"{who} serves model {identity.teacher}, but the configuration expects {fingerprint}: correct "
            "`fingerprint` or remove it"
        )


async def delete_teacher(app_name: str) -> None:
    """Delete a run's teacher after its ongoing groups. Does nothing if there is no teacher of this name.

    Raises:
        DeadlineError: The teacher was not deleted in time.
    """
    await delete_application(app_name, timeout_s=_DRAIN_S + CONTROL_TIMEOUT_S)


def teacher_application(
    config: TeacherConfig,
    *,
    label_selector: dict[str, str],
    owner: ActorHandle | None = None,
    vocabulary_size: int | None = None,
    announced: ReplicaAnnouncement | None = None,
) -> Application:
    """Return the Serve application of one run's teacher without deploying it.

    Args:
        config: Settings of the teacher. `path` is the location of the model.
        label_selector: Nodes on which the replicas may run; empty means any node.
        owner: Actor of the driver whose death deletes the application; None keeps it.
        vocabulary_size: Number of token ids that the student has; None means all ids of the teacher.
        announced: Monitor to which the replicas announce themselves; None for none.
    """
    options = _replica_options(
        config, label_selector, replicas=config.replicas, drain_s=_DRAIN_S, health_timeout_s=_HEALTH_CHECK_TIMEOUT_S
    )
    deployment = serve.deployment(TeacherServer).options(num_replicas=config.replicas, **options)
    return deployment.bind(config, owner=owner, vocabulary_size=vocabulary_size, announced=announced)


class TeacherReplicas:
    """`Scalable` replicas of a run's own teacher. All methods must be called from one event loop."""

    def __init__(self, app_name: str, *, replicas: int) -> None:
        """
        Args:
            app_name: Name of the application that `deploy_teacher` deployed.
            replicas: Current number of replicas.
        """
        self._app_name = app_name
        self._target = self._running = replicas
        self._changing: asyncio.Task[None] | None = None

    def state(self) -> PoolState:
        """Return the number of replicas as of the last status of Serve."""
        return PoolState(
            target=self._target,
            ready=min(self._running, self._target),
            starting=max(0, self._target - self._running),
            draining=max(0, self._running - self._target),
        )

    def resize(self, replicas: int) -> None:
        """Change the number of replicas in the background.

        Serve drains the replicas that it removes, and waits for room for those that it cannot place yet.
        """
        logger.info("teacher=%s state=resized from=%d to=%d", self._app_name, self._target, replicas)
        self._target = replicas
        if self._changing is None or self._changing.done():
            self._changing = asyncio.create_task(self._change())

    def close(self) -> None:
        """Stop following a change of size."""
        if self._changing is not None:
            self._changing.cancel()

    async def _change(self) -> None:
        """Request the target from Serve, repeatedly if it changes meanwhile, and poll until it is reached."""
        requested: int | None = None
        try:
            while requested != self._target or self._running != self._target:
                if requested != self._target:
                    requested = self._target
                    await set_replicas(TeacherServer.__name__, self._app_name, requested)
                self._running = await running_replicas(self._app_name)
                await asyncio.sleep(_HEALTH_CHECK_PERIOD_S)
        except RladError as error:
            logger.warning("teacher=%s state=resize_failed reason=%s", self._app_name, error)


def shared_teacher_application(config: TeacherServiceConfig, *, label_selector: dict[str, str]) -> Application:
    """Return the Serve application of the replicas of a teacher service without deploying it.

    The replicas enforce client quotas. With `config.max_replicas`, Serve scales their number by the groups in progress.

    Args:
        config: Settings of the service. `path` is the location of the model.
        label_selector: Nodes on which the replicas may run; empty means any node.
    """
    if config.max_replicas is None:
        size: dict[str, Any] = {"num_replicas": config.replicas}
    else:
        # A refused client waits outside of the replica, so the groups in progress of a single client never exceed its
        # quota. The default adds a replica when half of that persists.
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
    # The engine's settings only, without those of Serve and of the gateway.
    engine = TeacherConfig.model_validate(config.model_dump(include=TeacherConfig.model_fields.keys() - {"replicas"}))
    return deployment.bind(engine, max_groups_per_client=config.client_quota)


def _replica_options(
    config: TeacherConfig, label_selector: dict[str, str], *, replicas: int, drain_s: float, health_timeout_s: float
) -> dict[str, Any]:
    return {
        # Serve's default of 5 requests would leave a batching engine idle.
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
        # Serve's default is 20 attempts, but a model that cannot be loaded fails every time.
        "max_constructor_retry_count": 2,
        "logging_config": QUIET,
    }


async def find_service(name: str) -> Any:
    """Return the handle of the replicas of a teacher service on this cluster, bypassing its HTTP gateway.

    Raises:
        PlanError: There is no teacher service of this name.
    """
    services = await service_names()
    if name not in services:
        raise PlanError(
            f"no teacher service {name!r} on this Ray cluster (available: {', '.join(services) or 'none'}): "
            "deploy it with `rlad teacher deploy`, or set the teacher's `path`"
        )
    return await deployment_handle(SHARED_TEACHER, name)


async def service_names() -> list[str]:
    """Return the names of the teacher services on this cluster."""
    status = await serve_status()
    if status is None:
        return []
    return [name for name, application in status.applications.items() if SHARED_TEACHER in application.deployments]


def _who(app_name: str) -> str:
    return f"teacher {app_name!r}"
