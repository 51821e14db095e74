"""Teachers as Serve applications: deployed, looked at and removed, with a deadline on each of Serve's own calls.

Serve is started where it is not running, without any HTTP server unless an application asks for one.
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
# Serve describes applications (to deploy them, and to tell their status) and starts itself through module-wide state that its own calls do not guard:
# several teachers are deployed at once.
_SERVE_LOCK = Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAddress:
    """Where Serve answers HTTP."""

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
    """Deploy an application, or replace the one of this name, and wait until it is up.

    Args:
        http: where Serve is to answer HTTP; by default it does not, unless it does already.
        route_prefix: of the application's ingress.
        is_scaled_from_outside: let `set_replicas` change it.

    Returns:
        Handle of the application's ingress.

    Raises:
        EngineError, DeadlineError: it does not come up.
        PlanError: Serve is set up so that results cannot be passed by reference, or runs with another address of HTTP than `http`.
    """
    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0") == "1":
        raise PlanError(
            "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 makes Serve send results by value through the driver: unset it"
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
    """Change the number of a deployment's replicas; those that run and are still wanted go on. A second `serve.run` would replace all of them.

    Args:
        deployment: of an application that was deployed with `is_scaled_from_outside`.

    Raises:
        EngineError, DeadlineError: Serve did not take it.
    """

    def tell() -> None:
        client = _get_global_client()
        ray.get(
            client._controller.update_deployment_replicas.remote(
                DeploymentID(name=deployment, app_name=app_name), replicas
            )
        )

    await _blocking(tell, timeout_s=_MANAGEMENT_TIMEOUT_S, who=_who(app_name))


async def running_replicas(app_name: str) -> int:
    """Replicas of an application that are up.

    Raises:
        DeadlineError: Serve does not answer.
    """
    status = await _blocking(_status, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's status")
    deployments = status.applications[app_name].deployments if app_name in status.applications else {}
    return sum(each.replica_states.get("RUNNING", 0) for each in deployments.values())


async def delete_application(app_name: str, *, timeout_s: float) -> None:
    """Take an application down, after the requests that it has. Does nothing where there is none of this name.

    Raises:
        DeadlineError: it was not gone within `timeout_s`.
    """

    def delete() -> None:
        if _joined_serve():
            serve.delete(app_name)

    await _blocking(delete, timeout_s=timeout_s, who=f"removing {_who(app_name)}")


async def wait_until_running(app_name: str, *, deadline: float) -> None:
    """Wait until a deployed application is up.

    Raises:
        EngineError: it failed.
        DeadlineError: it was not up at `deadline`, a time of the monotonic clock.
    """
    message = "nothing is known of it"
    while (left := deadline - time.monotonic()) > 0:
        status = await _blocking(_status, timeout_s=min(left, _MANAGEMENT_TIMEOUT_S), who="Serve's status")
        application = status.applications[app_name]
        if application.status == ApplicationStatus.RUNNING:
            return
        message = (
            "; ".join([application.message, *(each.message for each in application.deployments.values())]).strip("; ")
            or application.status
        )
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise EngineError(f"{_who(app_name)} did not start: {_last_error(message)}")
        await asyncio.sleep(0.1)
    raise DeadlineError(f"{_who(app_name)} was not up in time: {message}")


async def serve_status() -> ServeStatus | None:
    """What Serve says of its applications; None where it does not run on this cluster. Starts nothing."""
    return await _blocking(
        lambda: _status() if _joined_serve() else None, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's status"
    )


async def deployment_handle(deployment: str, app_name: str) -> Any:
    """Handle of one deployment of an application, which need not be its ingress."""
    return await _blocking(
        lambda: serve.get_deployment_handle(deployment, app_name), timeout_s=_MANAGEMENT_TIMEOUT_S, who=_who(app_name)
    )


async def http_address() -> HttpAddress | None:
    """Where Serve answers HTTP on this cluster; None where it does not."""
    return await _blocking(
        lambda: _address() if _joined_serve() else None, timeout_s=_MANAGEMENT_TIMEOUT_S, who="Serve's HTTP server"
    )


def _start_serve(http: HttpAddress | None) -> None:
    """Start Serve, or join it. Its HTTP server is what it was started with, for as long as it runs.

    Raises:
        PlanError: it runs with another one than is wanted.
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
            f"Serve runs on this Ray cluster {'without HTTP' if running is None else f'at {running}'}, the service wants {http}, and Serve keeps what it "
            "was started with: change `http`, or end what it serves (`serve shutdown`) and deploy this first"
        )


def short_pauses(replicas: int) -> RequestRouterConfig:
    """How often a caller's router looks again while every replica holds all that it may.

    Serve's own pauses grow to half a second, although the replicas may be done with all that they had long before that. It looks from two places a
    replica at once, so the longest pause grows with them here: a hundred times a second, all together.
    """
    return RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=min(0.5, 0.02 * replicas))


def _address() -> HttpAddress | None:
    client = _get_global_client()
    location = ray.get(client._controller.get_proxy_location.remote(), timeout=_MANAGEMENT_TIMEOUT_S)
    options = client.http_config
    return None if location == ProxyLocation.Disabled else HttpAddress(host=options.host, port=options.port)


def _joined_serve() -> bool:
    """Join Serve where it runs. Without joining, a client of an earlier cluster would be used."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    with _SERVE_LOCK:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
    return True


def _status() -> ServeStatus:
    with _SERVE_LOCK:  # it rebuilds the descriptions
        return serve.status()


def _last_error(message: str) -> str:
    """Serve gives the replica's whole traceback. Its last line is the error, ours without the name of its class."""
    return re.sub(r"^rlad\.errors\.\w+: ", "", message.strip().splitlines()[-1])


async def _blocking(call: Callable[[], T], *, timeout_s: float, who: str) -> T:
    """Await a blocking call of Serve's. It runs on a daemon thread: a call that never returns keeps neither the loop nor the process.

    Being cancelled takes effect when the call has returned: what it set up must be there for whoever takes it down.

    Raises:
        DeadlineError: it did not return within `timeout_s`.
        RladError: what it raised.
    """
    # Serve's warnings are of single probes that a busy machine answered late; what fails is raised.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
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


def _who(app_name: str) -> str:
    return f"teacher {app_name!r}"
