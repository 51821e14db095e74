"""The teacher service: a named Serve application, independent of any run, and the client with which a driver has groups scored.

Group data goes from the object store to a replica and scores go back into it; the driver passes references.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce
from operator import add
from threading import Lock, Thread
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.schema import ApplicationStatus, ServeStatus
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, stop_after_attempt, wait_exponential

from actors.parts import ColumnsRef
from actors.remote_errors import translated
from actors.teacher_server import TeacherIdentity, TeacherServer, TeacherStats
from rlad.config import TeacherConfig
from rlad.contracts import TeacherSupport
from rlad.errors import DeadlineError, EngineError, PlanError, RladError, VocabularyMismatchError, WorkerLostError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How often Serve asks a replica for its health. A dead replica is found, and replaced, no sooner than that.
_HEALTH_CHECK_PERIOD_S = 1.0
# How long a replica that is being removed may go on with the groups it has.
_DRAIN_S = 20.0
# Deadline of questions that a replica answers at once, and of Serve's own management calls.
_CONTROL_TIMEOUT_S = 60.0
# Serve describes applications (to deploy them, and to tell their status) and starts itself through module-wide state that its own calls do not guard:
# several teachers are deployed at once.
_SERVE_LOCK = Lock()
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherClient:
    """A driver's side of a deployed teacher.

    Attributes:
        handle: of the Serve deployment.
        app_name: names the teacher in errors.
        teacher: fingerprint of its weights and tokenizer.
        tokenizer_fingerprint: of the student, sent with every group.
        timeout_s: deadline of scoring one group, retries included.
        max_retries: after a replica died.
    """

    handle: Any
    app_name: str
    teacher: str
    tokenizer_fingerprint: str
    timeout_s: float
    max_retries: int

    async def score(self, group_ref: ColumnsRef, *, num_tokens: int, support: TeacherSupport = None) -> ColumnsRef:
        """Have a group scored.

        Args:
            group_ref: reference to the columns of a `RolloutGroup`.
            num_tokens: its response tokens.
            support: what to score beside the sampled tokens; nothing costs nothing.

        Returns:
            Reference to the columns of its `TeacherScores`, owned by this process: it outlives the replica.

        Raises:
            DeadlineError: not scored within `timeout_s`.
            WorkerLostError: replicas died in every attempt.
            VocabularyMismatchError, EngineError: the teacher refused the group or failed on it; not tried again.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(WorkerLostError),
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential(max=10),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                scores_ref: ColumnsRef = await retrying(self._score_once, group_ref, num_tokens, support)
                return scores_ref
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise
            raise DeadlineError(f"teacher {self.app_name!r} did not score a group of {num_tokens} tokens within {self.timeout_s:g} s") from error

    async def stats(self) -> TeacherStats:
        """Sums over the replicas that run now; those that died have taken their counts along."""
        responses = self.handle.broadcast("stats").results_async(timeout_s=_CONTROL_TIMEOUT_S)
        with translated(who=f"teacher {self.app_name!r}"):
            replicas: list[TeacherStats] = await responses
        return reduce(add, replicas, TeacherStats())

    async def _score_once(self, group_ref: ColumnsRef, num_tokens: int, support: TeacherSupport) -> ColumnsRef:
        response = self.handle.options(method_name="score", stream=True).remote([group_ref], self.tokenizer_fingerprint, support)
        try:
            with translated(who=f"teacher {self.app_name!r}"):
                scores_ref, receipt = await _scores_and_receipt(response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        if receipt != num_tokens:
            raise EngineError(f"teacher {self.app_name!r} scored {receipt} tokens of a group that was said to have {num_tokens}")
        return scores_ref


async def _scores_and_receipt(response: Any) -> tuple[ColumnsRef, int]:
    """The first item as a reference, unfetched, and the second by value. A call that failed has one item: the error."""
    items = await response._to_object_ref_gen()  # Serve's way to results by reference; `async for` would fetch them
    scores_ref = await anext(items)
    try:
        receipt_ref = await anext(items)
    except StopAsyncIteration:
        await scores_ref  # raises what ended the call
        raise EngineError("the teacher ended a call without a receipt") from None
    return scores_ref, await receipt_ref


async def deploy_teacher(
    config: TeacherConfig,
    *,
    app_name: str,
    tokenizer_fingerprint: str,
    start_timeout_s: float,
    label_selector: dict[str, str] | None = None,
) -> TeacherClient:
    """Deploy a teacher and wait until all its replicas are up. Starts Serve where it is not running, without any HTTP server.

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
    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0") == "1":
        raise PlanError("RAY_SERVE_THROUGHPUT_OPTIMIZED=1 makes Serve send results by value through the driver: unset it")
    # Its warnings are of single probes that a busy machine answered late; what fails is raised.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    deadline = time.monotonic() + start_timeout_s
    who = f"teacher {app_name!r}"
    handle = await _blocking(lambda: _run_application(config, app_name, label_selector or {}), timeout_s=start_timeout_s, who=who)
    try:
        await _wait_until_running(app_name, deadline=deadline, who=who)
        identity = await _ask_identity(handle, who=who)
        if identity.tokenizer != tokenizer_fingerprint:
            raise VocabularyMismatchError(
                f"{who} ({config.path}) has tokenizer {identity.tokenizer}, the student has {tokenizer_fingerprint}: "
                "their token ids mean different things; use a teacher and a student with one vocabulary"
            )
    except RladError:
        await delete_teacher(app_name)
        raise
    logger.info("teacher=%s fingerprint=%s engine=%s replicas=%d", app_name, identity.teacher, config.engine, config.replicas)
    return TeacherClient(
        handle=handle,
        app_name=app_name,
        teacher=identity.teacher,
        tokenizer_fingerprint=tokenizer_fingerprint,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
    )


async def delete_teacher(app_name: str) -> None:
    """Take a teacher down, after the groups that it has. Does nothing where there is none of this name.

    Raises:
        DeadlineError: it did not end in time.
    """
    await _blocking(lambda: _delete_application(app_name), timeout_s=_CONTROL_TIMEOUT_S + _DRAIN_S, who=f"removing teacher {app_name!r}")


def teacher_application(config: TeacherConfig, *, label_selector: dict[str, str], max_replicas: int | None = None) -> Application:
    """The Serve application of a teacher, undeployed.

    Args:
        config: with `path` a model directory that the replicas' nodes can read.
        label_selector: of those nodes; an empty one takes any.
        max_replicas: lets Serve scale between `config.replicas` and so many by the groups that are under way; without it there are `config.replicas`.
    """
    if max_replicas is None:
        size: dict[str, Any] = {"num_replicas": config.replicas}
    else:
        # At half of what replicas may hold they are busy and none waits: more than that for long wants another replica.
        target = max(1, config.max_ongoing_requests // 2)
        size = {"autoscaling_config": {"min_replicas": config.replicas, "max_replicas": max_replicas, "target_ongoing_requests": target}}
    deployment = serve.deployment(TeacherServer).options(
        **size,
        # Serve's default of 5 would leave an engine that batches idle.
        max_ongoing_requests=config.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica, "label_selector": label_selector},
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        # A model that cannot be loaded does not load at the twentieth try either.
        max_constructor_retry_count=2,
        logging_config=_QUIET,
    )
    return deployment.bind(config)


def _run_application(config: TeacherConfig, app_name: str, label_selector: dict[str, str]) -> Any:
    with _SERVE_LOCK:
        target = serve.RunTarget(teacher_application(config, label_selector=label_selector), name=app_name, route_prefix=None)
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        [handle] = serve.run_many([target], wait_for_applications_running=False)
        return handle


def _status() -> ServeStatus:
    with _SERVE_LOCK:  # it rebuilds the descriptions
        return serve.status()


def _delete_application(app_name: str) -> None:
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return  # Serve does not run here
    with _SERVE_LOCK:
        serve.start(proxy_location="Disabled", logging_config=_QUIET)  # joins it; without this a client of an earlier cluster would be used
    serve.delete(app_name)


async def _wait_until_running(app_name: str, *, deadline: float, who: str) -> None:
    message = "nothing is known of it"
    while (left := deadline - time.monotonic()) > 0:
        status = await _blocking(_status, timeout_s=min(left, _CONTROL_TIMEOUT_S), who="Serve's status")
        application = status.applications[app_name]
        if application.status == ApplicationStatus.RUNNING:
            return
        message = "; ".join([application.message, *(each.message for each in application.deployments.values())]).strip("; ") or application.status
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise EngineError(f"{who} did not start: {_last_error(message)}")
        await asyncio.sleep(0.1)
    raise DeadlineError(f"{who} was not up in time: {message}")


def _last_error(message: str) -> str:
    """Serve gives the replica's whole traceback. Its last line is the error, ours without the name of its class."""
    return re.sub(r"^rlad\.errors\.\w+: ", "", message.strip().splitlines()[-1])


async def _ask_identity(handle: Any, *, who: str) -> TeacherIdentity:
    with translated(who=who):
        identity: TeacherIdentity = await asyncio.wait_for(_awaited(handle.identity.remote()), _CONTROL_TIMEOUT_S)
    return identity


async def _awaited(response: Any) -> Any:
    return await response


async def _blocking(call: Callable[[], T], *, timeout_s: float, who: str) -> T:
    """Await a blocking call of Serve's. It runs on a daemon thread: a call that never returns keeps neither the loop nor the process.

    Being cancelled takes effect when the call has returned: what it set up must be there for whoever takes it down.

    Raises:
        DeadlineError: it did not return within `timeout_s`.
        RladError: what it raised.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as error:  # noqa: BLE001 - handed to the awaiting side, which translates it
            done.set_exception(error)

    Thread(target=run, name="serve-management", daemon=True).start()
    returned = asyncio.wrap_future(done)
    try:
        with translated(who=who):
            return await asyncio.wait_for(asyncio.shield(returned), timeout_s)
    except asyncio.CancelledError:
        await asyncio.wait({returned}, timeout=timeout_s)
        raise
