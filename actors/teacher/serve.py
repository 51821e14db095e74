"""Deployment, status and deletion of Serve applications, with a deadline on each Serve call.

Serve is started if it is not running, without an HTTP server unless an application requires one.
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
from threading import Lock, Thread
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeStatus

from actors.remote_errors import translated
from rlad.errors import DeadlineError, EngineError, PlanError

T = TypeVar("T")

QUIET = {"log_level": "WARNING", "enable_access_log": False}

# Deadline of Serve's own management calls.
_MANAGEMENT_TIMEOUT_S = 60.0
# A status costs driver and controller 20 ms of CPU each, while the replica that is waited for needs the cores.
_START_POLL_S = 0.5
# Serve starts itself and describes applications (for deployment and status) through module state that its own calls do
# not guard. Several teachers are deployed concurrently.
_SERVE_LOCK = Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAddress:
    """Address of Serve's HTTP server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


async def deploy_application(
    application: Application,
    *,
    app_name: str,
    start_timeout_s: float,
    http: HttpAddress | None = None,
    route_prefix: str | None = None,
    is_scaled_from_outside: bool = False,
) -> Any:
    """Deploy an application, or replace the one of the same name, and wait until it runs.

    Args:
        application: Application to deploy.
        app_name: Name of the application.
        start_timeout_s: Deadline in seconds.
        http: Address of Serve's HTTP server. None starts no HTTP server and keeps one that is running.
        route_prefix: Route prefix of the application's ingress.
        is_scaled_from_outside: Allow `set_replicas` to scale the application.

    Returns:
        Handle of the application's ingress.

    Raises:
        EngineError, DeadlineError: The application does not start.
        PlanError: Serve is configured so that results cannot be passed by reference, or its HTTP server runs at another
            address than `http`.
    """
    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0") == "1":
        raise PlanError(
            "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 makes Serve send results by value through the driver; unset it"
        )
    deadline = time.monotonic() + start_timeout_s
    target = serve.RunTarget(
        application, name=app_name, route_prefix=route_prefix, external_scaler_enabled=is_scaled_from_outside
    )

    def run() -> Any:
        with _SERVE_LOCK:
            _start_serve(http)
            [handle] = serve.run_many([target], wait_for_applications_running=False)
            return handle

    handle = await _blocking(run, timeout_s=start_timeout_s, who=_who(app_name))
    await wait_until_running(app_name, deadline=deadline)
    return handle


async def set_replicas(deployment: str, app_name: str, replicas: int) -> None:
    """Change the number of replicas of a deployment. A second `serve.run` would replace all replicas instead.

    Args:
        deployment: Name of the deployment.
        app_name: Name of its application, deployed with `is_scaled_from_outside`.
        replicas: Number of replicas.

    Raises:
        EngineError, DeadlineError: Serve did not accept the change.
    """

    def update() -> None:
        client = _get_global_client()
        ray.get(
            client._controller.update_deployment_replicas.remote(
                DeploymentID(name=deployment, app_name=app_name), replicas
            ),
            timeout=_MANAGEMENT_TIMEOUT_S,
        )

    await _blocking(update, timeout_s=_MANAGEMENT_TIMEOUT_S, who=_who(app_name))


async def running_replicas(app_name: str) -> int:
    """Return the number of running replicas of an application.

    Raises:
        DeadlineError: Serve does not answer.
    """
    status = await _blocking(_status, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's status")
    deployments = status.applications[app_name].deployments if app_name in status.applications else {}
    return sum(deployment.replica_states.get("RUNNING", 0) for deployment in deployments.values())


async def delete_application(app_name: str, *, timeout_s: float) -> None:
    """Delete an application after its ongoing requests. Does nothing if there is no application of this name.

    Raises:
        DeadlineError: The application was not deleted within `timeout_s`.
    """

    def delete() -> None:
        if _joined_serve():
            serve.delete(app_name)

    await _blocking(delete, timeout_s=timeout_s, who=f"deletion of {_who(app_name)}")


async def wait_until_running(app_name: str, *, deadline: float) -> None:
    """Wait until a deployed application runs.

    Args:
        app_name: Name of the application.
        deadline: Time of the monotonic clock.

    Raises:
        EngineError: The deployment failed.
        DeadlineError: The application did not run by the deadline.
    """
    message = "its status is unknown"
    while (left := deadline - time.monotonic()) > 0:
        status = await _blocking(_status, timeout_s=min(left, _MANAGEMENT_TIMEOUT_S), who="Serve's status")
        application = status.applications[app_name]
        if application.status == ApplicationStatus.RUNNING:
            return
        message = (
            "; ".join([application.message, *(part.message for part in application.deployments.values())]).strip("; ")
            or application.status
        )
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise EngineError(f"{_who(app_name)} did not start: {_last_error(message)}")
        await asyncio.sleep(_START_POLL_S)
    raise DeadlineError(f"{_who(app_name)} did not start in time: {message}")


async def serve_status() -> ServeStatus | None:
    """Return Serve's status; None if Serve does not run on this cluster. Does not start Serve."""
    return await _blocking(
        lambda: _status() if _joined_serve() else None, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's status"
    )


async def deployment_handle(deployment: str, app_name: str) -> Any:
    """Return the handle of a deployment of an application. The deployment need not be the ingress."""
    return await _blocking(
        lambda: serve.get_deployment_handle(deployment, app_name), timeout_s=_MANAGEMENT_TIMEOUT_S, who=_who(app_name)
    )


async def http_address() -> HttpAddress | None:
    """Return the address of Serve's HTTP server on this cluster; None if there is none."""
    return await _blocking(
        lambda: _address() if _joined_serve() else None, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's HTTP server"
    )


def _start_serve(http: HttpAddress | None) -> None:
    """Start Serve, or connect to it. A running Serve keeps the HTTP server with which it was started.

    Raises:
        PlanError: Serve runs with another HTTP server than `http`.
    """
    if http is None:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        return
    serve.start(
        proxy_location="HeadOnly", http_options=HTTPOptions(host=http.host, port=http.port), logging_config=QUIET
    )
    running = _address()
    if running != http:
        raise PlanError(
            f"the service requires HTTP at {http}, but Serve already runs on this Ray cluster "
            f"{'without HTTP' if running is None else f'at {running}'} and cannot change its address: change `http`, "
            "or shut Serve down (`serve shutdown`) and deploy this service first"
        )


def short_pauses(replicas: int) -> RequestRouterConfig:
    """Return the backoff with which a caller's router retries while all replicas are at their limit of requests.

    Serve's default backoff grows to 0.5 s, in which replicas can finish all their requests and become idle. Serve
    retries from two tasks per replica concurrently, so the maximum here grows with the number of replicas: about 100
    retries per second in total.
    """
    return RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=min(0.5, 0.02 * replicas))


def _address() -> HttpAddress | None:
    client = _get_global_client()
    location = ray.get(client._controller.get_proxy_location.remote(), timeout=_MANAGEMENT_TIMEOUT_S)
    options = client.http_config
    return None if location == ProxyLocation.Disabled else HttpAddress(host=options.host, port=options.port)


def _joined_serve() -> bool:
    """Connect to Serve if it runs. Without connecting, the client of an earlier cluster would be used."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    with _SERVE_LOCK:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
    return True


def _status() -> ServeStatus:
    with _SERVE_LOCK:  # `status` rebuilds the descriptions of the applications
        return serve.status()


def _last_error(message: str) -> str:
    """Return the last line of Serve's message, a traceback, without the class name of a project error."""
    return re.sub(r"^rlad\.errors\.\w+: ", "", message.strip().splitlines()[-1])


async def _blocking(call: Callable[[], T], *, timeout_s: float, who: str) -> T:
    """Run a blocking call of Serve on a daemon thread and await its result.

    A call that never returns blocks neither the event loop nor the exit of the process. Cancellation takes effect after
    the call has returned: its result must exist before the caller can clean it up.

    Raises:
        DeadlineError: The call did not return within `timeout_s`.
        RladError: The call failed.
    """
    # Serve warns about single health checks that a busy machine answered late. Failures are raised.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as error:  # noqa: BLE001 - passed to the awaiting side, which converts it
            done.set_exception(error)

    Thread(target=run, name="serve-management", daemon=True).start()
    returned = asyncio.wrap_future(done)
    try:
        with translated(who=who):
            return await asyncio.wait_for(asyncio.shield(returned), timeout_s)
    except asyncio.CancelledError:
        await asyncio.wait({returned}, timeout=timeout_s)
        raise


def _who(app_name: str) -> str:
    return f"teacher {app_name!r}"
