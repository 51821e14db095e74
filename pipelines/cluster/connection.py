"""Joining or starting a Ray cluster, and asking whether a run fits on it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray

from actors.pool.placement import POOL_LABEL
from pipelines.cluster.job_environment import job_runtime_env
from pipelines.cluster.resources import Resources
from rlad.config import ClusterConfig
from rlad.errors import PlanError

logger = logging.getLogger(__name__)

# What every worker process needs to stay offline and quiet. Set for a cluster's workers by runtime_env, so they hold on every node.
WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def labelled_resources() -> dict[str, Resources]:
    """What the nodes of the connected cluster have, by their `rlad.io/pool` label; nodes without it count nowhere."""
    sums: dict[str, Resources] = {}
    for node in ray.nodes():
        pool = node["Labels"].get(POOL_LABEL)
        if node["Alive"] and pool is not None:
            before, has = sums.get(pool, Resources(cpus=0.0, gpus=0.0)), node["Resources"]
            sums[pool] = Resources(cpus=before.cpus + has.get("CPU", 0.0), gpus=before.gpus + has.get("GPU", 0.0))
    return sums


def local_resources(config: ClusterConfig) -> Resources:
    """What a local cluster would have."""
    gpus = ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    return Resources(cpus=config.num_cpus or psutil.cpu_count() or 1, gpus=gpus)


@contextmanager
def connected(config: ClusterConfig) -> Iterator[Resources]:
    """Join the cluster at `config.address`, or that of the Ray job which this process is (`RAY_ADDRESS`), or start one on this machine that ends with the
    block. Inside another such block it is that block's cluster, which goes on: several runs then share one start.

    Raises:
        PlanError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield _total_resources()
        return
    # In a submitted job Ray takes no variable twice: those that the job was given hold.
    given = job_runtime_env().get("env_vars") or {}
    runtime_env = {"env_vars": {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in given}}
    try:
        if config.address is None and "RAY_ADDRESS" not in os.environ:
            # Said outright: without an address Ray would join whatever cluster was started on this machine last.
            ray.init(
                "local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                runtime_env=runtime_env,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=config.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise PlanError(f"no Ray cluster answers at {config.address or 'this machine'}: {error}") from error
    _restore_sigterm()
    try:
        yield _total_resources()
    finally:
        ray.shutdown()


def _restore_sigterm() -> None:
    """Let SIGTERM end the program in order: Ray's handler dumps a stack and aborts the process three seconds later, with its pools half taken down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _total_resources() -> Resources:
    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))
