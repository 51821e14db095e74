"""Connection to a Ray cluster: join or start one, and query its resources."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from tenacity import RetryError, Retrying, before_sleep_log, retry_if_exception, stop_after_attempt

from actors.pool.placement import POOL_LABEL
from pipelines.cluster.authentication import require_same_authentication, token_remedy
from pipelines.cluster.job_environment import DRIVER, DRIVER_VARIABLE, job_runtime_env
from pipelines.cluster.resources import Resources
from rlad.config import ClusterConfig
from rlad.errors import PlanError

logger = logging.getLogger(__name__)

# Attempts to start a local cluster.
_LOCAL_STARTS = 3

_REMEDY = (
    "Start one with `ray start --head` on this machine (docs/how-to/cluster.md), or run without a cluster: leave out "
    "--address and set cluster.address=null"
)

# Environment of every worker process, on every node, through Ray's runtime_env.
WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray hides the GPUs of a node from actors that reserve none. Its default leaves them visible.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
} | {name: os.environ[name] for name in ("HF_ENDPOINT",) if name in os.environ}


def labelled_resources() -> dict[str, Resources]:
    """Return the resources of live nodes, summed by their `rlad.io/pool` label. Nodes without the label are ignored."""
    sums: dict[str, Resources] = {}
    for node in ray.nodes():
        pool = node["Labels"].get(POOL_LABEL)
        if node["Alive"] and pool is not None:
            total, resources = sums.get(pool, Resources(cpus=0.0, gpus=0.0)), node["Resources"]
            sums[pool] = Resources(
                cpus=total.cpus + resources.get("CPU", 0.0), gpus=total.gpus + resources.get("GPU", 0.0)
            )
    return sums


def local_resources(config: ClusterConfig) -> Resources:
    """Return the resources that a local cluster on this machine would have."""
    gpus = ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    return Resources(cpus=config.num_cpus or psutil.cpu_count() or 1, gpus=gpus)


@contextmanager
def connected(config: ClusterConfig) -> Iterator[Resources]:
    """Connect to a Ray cluster for the duration of the block.

    The cluster is, in this order: the one of an enclosing block, so that several runs share one start; the one at
    `config.address`; the one of the Ray job that this process belongs to (`RAY_ADDRESS`); a new local cluster, which
    ends with the block.

    Yields:
        The cluster's resources.

    Raises:
        PlanError: No cluster answers at the address, it uses a token and this process does not or the reverse, or the
            local cluster does not start.
    """
    if ray.is_initialized():
        yield _total_resources()
        return
    # Ray refuses variables that the submitted job already sets. The job's values take precedence.
    job_variables = job_runtime_env().get("env_vars") or {}
    variables = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in job_variables}
    runtime_env = {"env_vars": variables | {DRIVER_VARIABLE: DRIVER}}
    os.environ[DRIVER_VARIABLE] = DRIVER  # for the processes of a local cluster
    try:
        if config.address is None and "RAY_ADDRESS" not in os.environ:
            # Explicitly local: without an address Ray would join the cluster that was started last on this machine.
            _start_local(config, runtime_env)
        else:
            _join(config, runtime_env)
    except (ConnectionError, ValueError) as error:
        address = config.address or os.environ.get("RAY_ADDRESS", "")
        if ":" in address and (remedy := token_remedy(address)) is not None:
            raise PlanError(f"the Ray cluster at {address} refuses this process: {remedy}") from error
        raise PlanError(
            f"no Ray cluster answers at {config.address or 'this machine'}: {str(error).rstrip('. ')}. {_REMEDY}"
        ) from error
    _restore_sigterm()
    try:
        yield _total_resources()
    finally:
        ray.shutdown()


def _join(config: ClusterConfig, runtime_env: dict[str, Any]) -> None:
    ray.init(address=config.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    try:
        require_same_authentication()
    except PlanError:
        ray.shutdown()
        raise


def _is_slow_start(error: BaseException) -> bool:
    # Ray waits 30 s for its own processes, which cannot be configured, and raises a plain `Exception` after it.
    return type(error) is Exception and "timed out during startup" in str(error)


def _start_local(config: ClusterConfig, runtime_env: dict[str, Any]) -> None:
    """Start a local cluster. On a loaded machine its processes may start too slowly for Ray, so this is tried again.

    Raises:
        PlanError: It did not start on any attempt.
    """
    retrying = Retrying(
        retry=retry_if_exception(_is_slow_start),
        stop=stop_after_attempt(_LOCAL_STARTS),
        before_sleep=before_sleep_log(logger, logging.WARNING),
    )
    try:
        for attempt in retrying:
            with attempt:
                ray.init(
                    "local",
                    num_cpus=config.num_cpus,
                    include_dashboard=False,
                    runtime_env=runtime_env,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except RetryError as error:
        raise PlanError(
            f"a local Ray cluster did not start in {_LOCAL_STARTS} attempts of 30 s: {error.last_attempt.exception()} "
            "Start again when the machine is less loaded, or name a running cluster in `cluster.address`"
        ) from error


def _restore_sigterm() -> None:
    """Replace Ray's SIGTERM handler by a clean exit.

    Ray's handler dumps a stack and aborts the process three seconds later, before its pools are shut down.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _total_resources() -> Resources:
    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))
