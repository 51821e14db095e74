"""What `rlad teacher` does: a teacher as a service on a Ray cluster, deployed, looked at, deleted; and the Serve config file that says the same."""

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
from pipelines.run.directory import write_atomically
from rlad.config import ClusterConfig, TeacherServiceFile
from rlad.config.load import read_settings, validated
from rlad.errors import ConfigError, DeadlineError, PlanError, RladError
from rlad.teacher.http_client import health_status
from rlad.teacher.wire_format import TeacherIdentity

T = TypeVar("T")

# Between two looks at a service that is coming up.
_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """How a teacher service stands.

    Attributes:
        status: Serve's word for the application.
        message: what Serve says about it, empty where all is well.
        replicas: their number by Serve's word for their state.
        url: of its HTTP side, as seen from the head node; None where it has none.
        identity: None while no replica answers, like the next.
        stats: of the replicas that run now.
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
        """Replicas that score."""
        return self.replicas.get("RUNNING", 0)


_STATE = TypeAdapter(ServiceState)


def read_service(path: Path, overrides: Sequence[str]) -> TeacherServiceFile:
    """Read what `rlad teacher deploy` deploys.

    Raises:
        ConfigError: what is wrong with it, and where a run's file was given, what to give.
    """
    settings = read_settings(path, overrides)
    if "student" in settings:
        raise ConfigError(
            f"{path} is a run's configuration. A teacher service has a file of its own: `name`, `path` and what else `teacher:` has in a run "
            "(see configs/teachers)"
        )
    return validated(TeacherServiceFile, settings, where=str(path))


def serve_file(service: TeacherServiceFile) -> dict[str, Any]:
    """The same for `serve deploy`: what Serve needs to know, and as the application's `args` the settings that are not the default's."""
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
        source: the service's file, as the header names it.
    """
    header = (
        f"# {path.name}, made of {source} by `rlad teacher deploy {source} --serve-file`; change that and make it again.",
        "# `serve deploy` with it on a Ray cluster's head is the same as `rlad teacher deploy` there.",
    )
    write_atomically(path, "\n".join([*header, yaml.safe_dump(serve_file(service), sort_keys=False)]))


def deploy(service: TeacherServiceFile, *, address: str, timeout_s: float) -> ServiceState:
    """Deploy a service, or change the one of this name to what is wanted now, and wait until it answers. It stays when this process ends.

    Raises:
        PlanError: no cluster, or no model, or another application has the name, or Serve has another HTTP address.
        EngineError: the engine does not start on this model, or the gateway has no token.
        DeadlineError: it was not up in time.
    """
    application = service_application(service)
    http = None if service.http is None else HttpAddress(host=service.http.host, port=service.http.port)

    async def run() -> ServiceState:
        deadline = time.monotonic() + timeout_s
        status = await serve_status()
        present = None if status is None else status.applications.get(service.name)
        if present is not None and SHARED_TEACHER not in present.deployments:
            raise PlanError(
                f"the application {service.name!r} on this cluster is no teacher service: choose another name"
            )
        await deploy_application(
            application, app_name=service.name, start_timeout_s=timeout_s, http=http, route_prefix=_route(service)
        )
        if http is not None:
            await _settle(f"{http}{_route(service)}", deadline=deadline)
        return await _state_of(service.name)

    return _on_cluster(address, run())


def as_dict(state: ServiceState) -> dict[str, Any]:
    """For JSON."""
    found: dict[str, Any] = _STATE.dump_python(state, mode="json")
    return found


def states(*, address: str) -> list[ServiceState]:
    """Every service on a cluster.

    Raises:
        PlanError: no cluster answers.
    """

    async def ask() -> list[ServiceState]:
        return list(await asyncio.gather(*(_state_of(name) for name in await service_names())))

    return _on_cluster(address, ask())


def state(name: str | None, *, address: str) -> ServiceState:
    """One service; without a name the only one that there is.

    Raises:
        PlanError: no cluster answers, or it has no such service, or several.
    """

    async def ask() -> ServiceState:
        if name is not None:
            await find_service(name)
            return await _state_of(name)
        names = await service_names()
        if len(names) != 1:
            raise PlanError(
                f"name the service: there are {', '.join(names)}"
                if names
                else "there is no teacher service on this Ray cluster"
            )
        return await _state_of(names[0])

    return _on_cluster(address, ask())


def delete(name: str, *, address: str, timeout_s: float) -> None:
    """Take a service down, after the groups that it has.

    Raises:
        PlanError: no cluster answers, or it has no such service.
        DeadlineError: it was not gone in time. It goes on going.
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
        raise PlanError("Serve does not run on this Ray cluster any more")
    application = status.applications[name]
    messages = [application.message, *(each.message for each in application.deployments.values())]
    state = ServiceState(
        name=name,
        status=str(application.status.value),
        message="; ".join(filter(None, messages)),
        replicas={str(word): number for word, number in application.deployments[SHARED_TEACHER].replica_states.items()},
        url=await _url_of(name) if GATEWAY in application.deployments else None,
    )
    if not state.running:
        return state
    handle, who = await deployment_handle(SHARED_TEACHER, name), f"teacher service {name!r}"
    try:
        identity, stats = await asyncio.gather(ask_identity(handle, who=who), ask_stats(handle, who=who))
    except RladError as error:  # it changes while it is looked at: what Serve knows is told all the same
        return replace(state, message="; ".join(filter(None, [state.message, str(error)])))
    return replace(state, identity=identity, stats=stats)


async def _url_of(name: str) -> str | None:
    address = await http_address()
    return None if address is None else f"{address}/{name}"


async def _settle(url: str, *, deadline: float) -> None:
    """Wait until Serve's HTTP server knows of an application, a moment after it is up. Where that is on a loopback not ours, Serve's word is enough."""
    while (status := await health_status(url)) not in (None, httpx.codes.OK):
        if time.monotonic() > deadline:
            raise DeadlineError(f"the service is up, but {url} answers with status {status}")
        await asyncio.sleep(_LOOK_AGAIN_S)


def _route(service: TeacherServiceFile) -> str | None:
    """Services of one cluster share an address, and are told apart by their names. Without HTTP there is no way in."""
    return None if service.http is None else f"/{service.name}"
