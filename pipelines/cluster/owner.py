"""Owner of what a run leaves outside of its directory, and the reaper of what a dead driver left behind.

A driver that is killed cannot delete its Serve applications, its shared-memory files and its processes. The run
directory records the driver while it works, so the next driver of the run finds the record and reaps.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.controller import find_controller
from actors.remote_errors import reason_of
from actors.teacher.deployment import delete_teacher
from actors.weights.node_file import remove_dead_folder
from pipelines.cluster.job_environment import DRIVER, DRIVER_VARIABLE
from pipelines.run.directory import RunDirectory
from rlad.errors import RladError, RunDirectoryError
from rlad.integrity.durable import write_atomically

logger = logging.getLogger(__name__)

_NODE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Driver that works on a run.

    Attributes:
        driver: Token of the driver, which all its processes have in their environment.
        run_id: Id of the run in the cluster.
        host: Host of the driver.
        pid: Process id of the driver.
        started_at: Start, in seconds since the epoch.
    """

    driver: str
    run_id: str
    host: str
    pid: int
    started_at: float


@contextmanager
def owned(run: RunDirectory, run_id: str, *, applications: Collection[str]) -> Iterator[None]:
    """Reap what an earlier driver of the run left behind, and record this one while the block runs.

    Only a driver that is killed leaves its record. Requires the lock of the run directory, so that the earlier driver
    is dead, and a connection to the cluster.

    Args:
        run: The run.
        run_id: Id of the run in the cluster.
        applications: Names of the Serve applications of the run.
    """
    earlier = read_owner(run)
    if earlier is not None and earlier.driver != DRIVER:
        reap(earlier, applications=applications)
    owner = Owner(driver=DRIVER, run_id=run_id, host=socket.gethostname(), pid=os.getpid(), started_at=time.time())
    write_atomically(run.owner, json.dumps(asdict(owner)) + "\n")
    try:
        yield
    finally:
        run.owner.unlink(missing_ok=True)


def read_owner(run: RunDirectory) -> Owner | None:
    """Return the driver that is recorded; None if there is none, or if the record cannot be read."""
    try:
        return Owner(**json.loads(run.owner.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def reap(owner: Owner, *, applications: Collection[str]) -> None:
    """Delete what a dead driver left behind on the connected cluster. What cannot be deleted is logged.

    Serve applications and the run's controller are deleted, then on every node the processes that have the driver's
    token in their environment, and the run's folder in shared memory.
    """
    logger.warning("reaping run=%s host=%s pid=%d", owner.run_id, owner.host, owner.pid)
    for name in applications:
        with _logged(f"application {name}"):
            asyncio.run(delete_teacher(name))
    with _logged("controller"), suppress(RunDirectoryError):
        ray.kill(find_controller(owner.run_id))
    reaping = {
        _reap_node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            owner.driver, owner.run_id
        ): node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"]
    }
    for ref, host in reaping.items():
        with _logged(f"node {host}"):
            num_processes = ray.get(ref, timeout=_NODE_TIMEOUT_S)
            logger.info("reaped run=%s host=%s processes=%d", owner.run_id, host, num_processes)


def kill_processes(driver: str) -> int:
    """Kill the processes of this user on this machine that a driver has started. Return their number."""
    found = [process for process in psutil.process_iter() if _driver_of(process) == driver]
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)
    return len(found)


def _driver_of(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):  # another user's process, or one that has ended
        return None
    return environment.get(DRIVER_VARIABLE)


@ray.remote(num_cpus=0)
def _reap_node(driver: str, run_id: str) -> int:
    killed = kill_processes(driver)
    remove_dead_folder(run_id)
    return killed


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log a failure of the block: the run can start although something of its predecessor remains."""
    try:
        yield
    except (RladError, ray.exceptions.RayError) as error:
        logger.warning("reaping=%s state=failed reason=%s", what, reason_of(error))
