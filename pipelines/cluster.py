"""Joining or starting a Ray cluster, and asking whether a run fits on it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import ray

from actors.placement import HEAD_POOL, POOL_LABEL, label_of
from actors.reward import reward_pool_name
from pipelines.inside_job import job_runtime_env
from rlad.config import ClusterConfig, RunConfig
from rlad.errors import PlanError
from rlad.verifiers import reward_models

logger = logging.getLogger(__name__)

# What every worker process needs to stay offline and quiet. Set for a cluster's workers by runtime_env, so they hold on every node.
WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
}

_LABELLING = "start nodes with `ray start --labels`, deploy what `rlad deploy render` writes, or turn cluster.pool_labels off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPUs and GPUs, of a demand or of a cluster."""

    cpus: float
    gpus: float


def demand_by_pool(config: RunConfig) -> dict[str, Resources]:
    """What each pool of a run asks of Ray while it trains."""
    rollout, learner, verifier = config.rollout, config.learner, config.verifier_pool
    return {
        "rollout": Resources(cpus=rollout.workers * rollout.cpus_per_worker, gpus=rollout.workers * rollout.gpus_per_worker),
        "learner": Resources(cpus=learner.ranks * learner.cpus_per_rank, gpus=learner.ranks * learner.gpus_per_rank),
        "verifier": Resources(cpus=verifier.workers * verifier.cpus_per_worker, gpus=0.0),
        **_reward_demand(config),
        **{
            pool: Resources(cpus=model.replicas * model.cpus_per_replica, gpus=model.replicas * model.gpus_per_replica)
            for pool, model in config.scoring_pools.items()
        },
    }


def generation_demand(config: RunConfig) -> dict[str, Resources]:
    """What each pool of an offline run asks of Ray while the teacher makes traces; they are gone before it trains. Empty for other runs."""
    if config.offline is None or config.offline.traces is not None:
        return {}
    generator, verifier = config.offline.generator_of(config.rollout), config.verifier_pool
    return {
        "teacher": Resources(cpus=generator.workers * generator.cpus_per_worker, gpus=generator.workers * generator.gpus_per_worker),
        "verifier": Resources(cpus=verifier.workers * verifier.cpus_per_worker, gpus=0.0),
        **_reward_demand(config),
    }


def _reward_demand(config: RunConfig) -> dict[str, Resources]:
    return {
        reward_pool_name(task): Resources(cpus=model.workers * model.cpus_per_worker, gpus=model.workers * model.gpus_per_worker)
        for task, model in reward_models(config.verifiers).items()
    }


def require_room(config: RunConfig, available: Resources, where: str) -> None:
    """Refuse a run that the cluster can never place.

    Raises:
        PlanError: with what each pool asks for and what is there.
    """
    for demand in (generation_demand(config), demand_by_pool(config)):
        _require_room_for(demand, available, where)


def require_labelled_room(config: RunConfig, by_label: Mapping[str, Resources]) -> None:
    """Refuse a run that `cluster.pool_labels` steers to nodes that are not there, or are too few.

    Args:
        by_label: what the nodes of each `rlad.io/pool` label have together.

    Raises:
        PlanError: naming the pool.
    """
    if HEAD_POOL not in by_label:
        raise PlanError(f"cluster.pool_labels is on, but no node is labelled {POOL_LABEL}={HEAD_POOL}: {_LABELLING}")
    for demand in (generation_demand(config), demand_by_pool(config)):
        for pool, wanted in demand.items():
            label = label_of(pool)
            if label not in by_label:
                raise PlanError(f"cluster.pool_labels is on, but no node is labelled {POOL_LABEL}={label}: {_LABELLING}")
            _require_room_for({pool: wanted}, by_label[label], f"what is labelled {POOL_LABEL}={label}")


def labelled_resources() -> dict[str, Resources]:
    """What the nodes of the connected cluster have, by their `rlad.io/pool` label; nodes without it count nowhere."""
    sums: dict[str, Resources] = {}
    for node in ray.nodes():
        pool = node["Labels"].get(POOL_LABEL)
        if node["Alive"] and pool is not None:
            before, has = sums.get(pool, Resources(cpus=0.0, gpus=0.0)), node["Resources"]
            sums[pool] = Resources(cpus=before.cpus + has.get("CPU", 0.0), gpus=before.gpus + has.get("GPU", 0.0))
    return sums


def _require_room_for(demand: dict[str, Resources], available: Resources, where: str) -> None:
    for kind in ("cpus", "gpus"):
        wanted, there = sum(getattr(pool, kind) for pool in demand.values()), getattr(available, kind)
        if wanted > there + 1e-6:
            shares = ", ".join(f"{name} {getattr(pool, kind):g}" for name, pool in demand.items() if getattr(pool, kind))
            raise PlanError(
                f"too few {kind.upper().replace('S', 's')} for the placement: the pools need {wanted:g} ({shares}), {where} has {there:g}; "
                f"take fewer or smaller workers, or a larger cluster"
            )


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
                "local", num_cpus=config.num_cpus, include_dashboard=False, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR
            )
        else:
            ray.init(address=config.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise PlanError(f"no Ray cluster answers at {config.address or 'this machine'}: {error}") from error
    _take_sigterm_back()
    try:
        yield _total_resources()
    finally:
        ray.shutdown()


def _take_sigterm_back() -> None:
    """Let SIGTERM end the program in order: Ray's handler dumps a stack and aborts the process three seconds later, with its pools half taken down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _total_resources() -> Resources:
    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))
