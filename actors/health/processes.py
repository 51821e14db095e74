"""Processes of a run in a Ray cluster, and the announcements of those to which the driver has no handle.

Learner ranks and teacher replicas are started by Ray Train and Ray Serve. They announce themselves in the key-value
store of the Ray cluster, under the name of their run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from actors.health.node_watch import ProcessId

logger = logging.getLogger(__name__)

_NAMESPACE = "rlad-processes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A process that has announced itself.

    Attributes:
        process: The process.
        name: Name in logs and in the status of the run.
        role: Name of its pool or service. A process that replaces another one has its role.
        has_engine: Whether its child processes are an engine, without which it cannot work.
    """

    process: ProcessId
    name: str
    role: str
    has_engine: bool


def this_process() -> ProcessId:
    """Return the identity of the calling process, which is connected to Ray."""
    return ProcessId.of(os.getpid(), node=ray.get_runtime_context().get_node_id())


def announce(run_id: str, name: str, *, role: str, has_engine: bool = False) -> None:
    """Announce the calling process to the monitor of a run. The arguments are those of `Announcement`."""
    process = this_process()
    announcement = Announcement(process=process, name=name, role=role, has_engine=has_engine)
    _internal_kv_put(_key(run_id, process), json.dumps(dataclasses.asdict(announcement)), namespace=_NAMESPACE)


def withdraw(run_id: str) -> None:
    """Withdraw the announcement of the calling process, which ends as planned.

    Never raises a failure of the store, which must not replace the result of the process.
    """
    try:
        forget(run_id, this_process())
    except RayError as error:
        logger.warning("announcement=not_withdrawn reason=%s", error)


def announced(run_id: str) -> list[Announcement]:
    """Return the announced processes of a run."""
    found: list[Announcement] = []
    for key in _internal_kv_list(f"{run_id}/", namespace=_NAMESPACE):
        value = _internal_kv_get(key, namespace=_NAMESPACE)
        if value is not None:  # withdrawn meanwhile
            fields = json.loads(value)
            found.append(Announcement(**{**fields, "process": ProcessId(**fields["process"])}))
    return found


def forget(run_id: str, process: ProcessId) -> None:
    """Remove the announcement of a process that has ended."""
    _internal_kv_del(_key(run_id, process), namespace=_NAMESPACE)


def forget_all(run_id: str) -> None:
    """Remove all announcements of a run. Never raises a failure of the store: the next run of this name repeats it."""
    try:
        _internal_kv_del(f"{run_id}/", del_by_prefix=True, namespace=_NAMESPACE)
    except RayError as error:
        logger.warning("announcements=not_removed run=%s reason=%s", run_id, error)


async def process_of(actor: ActorHandle, *, deadline_s: float) -> ProcessId:
    """Return the process of an actor. Waits until its constructor has returned.

    Raises:
        TimeoutError: No answer within the deadline.
        RayActorError: The actor has died.
    """
    async with asyncio.timeout(deadline_s):
        process: ProcessId = await actor.__ray_call__.remote(_own_process)
    return process


def _own_process(_: Any) -> ProcessId:
    return this_process()


def _key(run_id: str, process: ProcessId) -> str:
    return f"{run_id}/{process.node}/{process.pid}"
