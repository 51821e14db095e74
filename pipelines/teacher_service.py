"""Teacher services on a Ray cluster: deployment, status, deletion, and equivalent Serve config files.

Implements `rlad teacher`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from pydantic import TypeAdapter

from actors.teacher.application import BUILD_PATH, service_application
from actors.teacher.client import ask_identity, ask_stats
from actors.teacher.deployment import SHARED_TEACHER, find_service, service_names
from actors.teacher.http_gateway import GATEWAY
from actors.teacher.quota import TeacherStats
from actors.teacher.serve import (
    HttpAddress,
    delete_application,
    deploy_application,
    deployment_handle,
    http_address,
    serve_status,
)
from pipelines.cluster.connection import connected
from pipelines.cluster.node_models import PoolModel, fetch_on_nodes
from rlad.config import ClusterConfig, TeacherServiceFile
from rlad.config.load import read_settings, validated
from rlad.errors import ConfigError, DeadlineError, PlanError, RladError
from rlad.integrity.durable import write_atomically
from rlad.models.locations import pin_model
from rlad.teacher.http_client import health_status
from rlad.teacher.wire_format import TeacherIdentity

T = TypeVar("T")

# Interval between two health checks of a service that is starting.
_POLL_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """State of a teacher service.

    Attributes:
        name: Name of the service.
        status: Serve's status of the application.
        message: Serve's message about the application; empty if it is healthy.
        replicas: Number of replicas by Serve's replica state.
        url: URL of the HTTP interface as seen from the head node; None without HTTP.
        identity: Identity of the teacher; None while no replica answers.
        stats: Statistics of the running replicas; None while no replica answers.
    """

    name: str
    status: str
    message: str
    replicas: Mapping[str, int]
    url: str | None
    identity: TeacherIdentity | None = None
    stats: TeacherStats | None = None

    @property
    def running(self) -> int:
        """Number of running replicas."""
        return self.replicas.get("RUNNING", 0)


_STATE = TypeAdapter(ServiceState)


def read_service(path: Path, overrides: Sequence[str]) -> TeacherServiceFile:
    """Read the file of a teacher service.

    Args:
        path: YAML file of the service.
        overrides: Settings `key=value` that override the file.

    Raises:
        ConfigError: The file is invalid, or it is the configuration of a run.
    """
    settings = read_settings(path, overrides)
    if "student" in settings:
        raise ConfigError(
            f"{path} is the configuration of a run. Expected the file of a teacher service: `name`, `path` and further "
            "settings of `teacher` (examples are in configs/teachers)"
        )
    return validated(TeacherServiceFile, settings, where=str(path))


def serve_file(service: TeacherServiceFile) -> dict[str, Any]:
    """Return the Serve config file that deploys the same service with `serve deploy`.

    The application's `args` hold the settings that differ from their defaults.
    """
    args = service.model_dump(mode="json", exclude_defaults=True, exclude={"name": True, "http": {"host", "port"}})
    if service.http is not None:
        args.setdefault("http", {})
    application = {"name": service.name, "route_prefix": _route(service), "import_path": BUILD_PATH, "args": args}
    if service.http is None:
        return {"proxy_location": "Disabled", "applications": [application]}
    options = {"host": service.http.host, "port": service.http.port}
    return {"proxy_location": "HeadOnly", "http_options": options, "applications": [application]}


def write_serve_file(service: TeacherServiceFile, path: Path, *, source: str) -> None:
    """Write `serve_file` as YAML.

    Args:
        service: Service to deploy.
        path: File to write.
        source: Path of the service's file, for the header.
    """
    header = (
        f"# {path.name}: generated from {source} by `rlad teacher deploy {source} --serve-file`. Do not edit.",
        "# `serve deploy` of this file on the head node of a Ray cluster is equivalent to `rlad teacher deploy` there.",
    )
    write_atomically(path, "\n".join([*header, yaml.safe_dump(serve_file(service), sort_keys=False)]))


def deploy(service: TeacherServiceFile, *, address: str, timeout_s: float) -> ServiceState:
    """Deploy or update a teacher service and wait until it answers. The service outlives this process.

    The model is downloaded on the nodes first, so that the deadline does not include a download.

    Args:
        service: Service to deploy.
        address: Address of the Ray cluster.
        timeout_s: Deadline in seconds.

    Raises:
        PlanError: No cluster answers at the address, the model is missing, another application has the name, or Serve
            has another HTTP address.
        EngineError: The engine does not start with this model, or the gateway has no token.
        DeadlineError: The service did not start in time.
    """
    located = service.model_copy(update={"path": pin_model(service.path).location})
    application = service_application(located)
    model = PoolModel(pool=service.pool or "", location=located.path, on_gpu=service.gpus_per_replica > 0)
    placement = ClusterConfig(address=address, pool_labels=service.pool is not None)
    http = None if service.http is None else HttpAddress(host=service.http.host, port=service.http.port)

    async def run() -> ServiceState:
        await asyncio.to_thread(lambda: list(fetch_on_nodes(placement, [model])))
        deadline = time.monotonic() + timeout_s
        status = await serve_status()
        present = None if status is None else status.applications.get(service.name)
        if present is not None and SHARED_TEACHER not in present.deployments:
            raise PlanError(
                f"the application {service.name!r} on this cluster is not a teacher service: choose another name"
            )
        await deploy_application(
            application, app_name=service.name, start_timeout_s=timeout_s, http=http, route_prefix=_route(service)
        )
        if http is not None:
            await _wait_for_route(f"{http}{_route(service)}", deadline=deadline)
        return await _state_of(service.name)

    return _on_cluster(address, run())


def as_dict(state: ServiceState) -> dict[str, Any]:
    """Return the state as a dictionary that is ready for JSON."""
    found: dict[str, Any] = _STATE.dump_python(state, mode="json")
    return found


def states(*, address: str) -> list[ServiceState]:
    """Return the states of all teacher services on a cluster.

    Raises:
        PlanError: No cluster answers at the address.
    """

    async def ask() -> list[ServiceState]:
        return list(await asyncio.gather(*(_state_of(name) for name in await service_names())))

    return _on_cluster(address, ask())


def state(name: str | None, *, address: str) -> ServiceState:
    """Return the state of a teacher service.

    Args:
        name: Name of the service; None for the only service of the cluster.
        address: Address of the Ray cluster.

    Raises:
        PlanError: No cluster answers at the address, the service does not exist, or `name` is None and there is not
            exactly one service.
    """

    async def ask() -> ServiceState:
        if name is not None:
            await find_service(name)
            return await _state_of(name)
        names = await service_names()
        if len(names) != 1:
            raise PlanError(
                f"several teacher services on this Ray cluster, specify one: {', '.join(names)}"
                if names
                else "no teacher service on this Ray cluster"
            )
        return await _state_of(names[0])

    return _on_cluster(address, ask())


def delete(name: str, *, address: str, timeout_s: float) -> None:
    """Delete a teacher service after its ongoing groups.

    Raises:
        PlanError: No cluster answers at the address, or the service does not exist.
        DeadlineError: The service was not deleted in time. Deletion continues in the background.
    """

    async def run() -> None:
        await find_service(name)
        await delete_application(name, timeout_s=timeout_s)

    _on_cluster(address, run())


def _on_cluster(address: str, work: Coroutine[Any, Any, T]) -> T:
    try:
        with connected(ClusterConfig(address=address)):
            return asyncio.run(work)
    finally:
        work.close()


async def _state_of(name: str) -> ServiceState:
    status = await serve_status()
    if status is None:
        raise PlanError("Serve no longer runs on this Ray cluster")
    application = status.applications[name]
    messages = [application.message, *(part.message for part in application.deployments.values())]
    state = ServiceState(
        name=name,
        status=str(application.status.value),
        message="; ".join(filter(None, messages)),
        replicas={str(kind): number for kind, number in application.deployments[SHARED_TEACHER].replica_states.items()},
        url=await _url_of(name) if GATEWAY in application.deployments else None,
    )
    if not state.running:
        return state
    handle, who = await deployment_handle(SHARED_TEACHER, name), f"teacher service {name!r}"
    try:
        identity, stats = await asyncio.gather(ask_identity(handle, who=who), ask_stats(handle, who=who))
    except RladError as error:  # the service may change meanwhile; report what Serve knows
        return replace(state, message="; ".join(filter(None, [state.message, str(error)])))
    return replace(state, identity=identity, stats=stats)


async def _url_of(name: str) -> str | None:
    address = await http_address()
    return None if address is None else f"{address}/{name}"


async def _wait_for_route(url: str, *, deadline: float) -> None:
    """Wait until Serve's HTTP server routes to an application, shortly after the application runs.

    Returns at once if nothing answers at the URL, for example if it is the loopback of another machine.
    """
    while (status := await health_status(url)) not in (None, httpx.codes.OK):
        if time.monotonic() > deadline:
            raise DeadlineError(f"the service runs, but {url}/healthz answers with HTTP status {status}")
        await asyncio.sleep(_POLL_INTERVAL_S)


def _route(service: TeacherServiceFile) -> str | None:
    """Return the route prefix of a service, which is its name; None without HTTP. Services share one address."""
    return None if service.http is None else f"/{service.name}"
