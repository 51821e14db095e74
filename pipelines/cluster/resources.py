"""Resources that a run's pools request from Ray, and checks that a cluster has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from actors.pool.placement import HEAD_POOL, POOL_LABEL, label_of, reward_pool_name
from rlad.config import RunConfig
from rlad.errors import PlanError
from rlad.verifiers import reward_models

_LABELLING = (
    "start nodes with `ray start --labels`, use the manifests of `rlad deploy render`, or set cluster.pool_labels=false"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPUs and GPUs, requested or available."""

    cpus: float
    gpus: float


def demand_by_pool(config: RunConfig) -> dict[str, Resources]:
    """Return the resources of each pool during training."""
    rollout, learner, verifier = config.rollout, config.learner, config.verifier_pool
    return {
        "rollout": Resources(
            cpus=rollout.workers * rollout.cpus_per_worker, gpus=rollout.workers * rollout.gpus_per_worker
        ),
        "learner": Resources(cpus=learner.ranks * learner.cpus_per_rank, gpus=learner.ranks * learner.gpus_per_rank),
        "verifier": Resources(cpus=verifier.workers * verifier.cpus_per_worker, gpus=0.0),
        **_reward_demand(config),
        **{
            pool: Resources(cpus=model.replicas * model.cpus_per_replica, gpus=model.replicas * model.gpus_per_replica)
            for pool, model in config.scoring_pools.items()
        },
    }


def planned_workers(config: RunConfig) -> dict[str, int]:
    """Return the number of workers of each pool during training, as configured."""
    return {
        "rollout": config.rollout.workers,
        "learner": config.learner.ranks,
        "verifier": config.verifier_pool.workers,
        **{reward_pool_name(task): model.workers for task, model in reward_models(config.verifiers).items()},
        **{pool: model.replicas for pool, model in config.scoring_pools.items()},
    }


def generation_demand(config: RunConfig) -> dict[str, Resources]:
    """Return the resources of each pool while an offline run generates traces; empty for other runs.

    These pools are removed before the training starts.
    """
    if config.offline is None or config.offline.traces is not None:
        return {}
    generator, verifier = config.offline.generator_of(config.rollout), config.verifier_pool
    return {
        "teacher": Resources(
            cpus=generator.workers * generator.cpus_per_worker, gpus=generator.workers * generator.gpus_per_worker
        ),
        "verifier": Resources(cpus=verifier.workers * verifier.cpus_per_worker, gpus=0.0),
        **_reward_demand(config),
    }


def _reward_demand(config: RunConfig) -> dict[str, Resources]:
    return {
        reward_pool_name(task): Resources(
            cpus=model.workers * model.cpus_per_worker, gpus=model.workers * model.gpus_per_worker
        )
        for task, model in reward_models(config.verifiers).items()
    }


def require_room(
    config: RunConfig, available: Resources, where: str, *, without: Collection[str] = frozenset()
) -> None:
    """Check that the cluster can place the run.

    Args:
        config: Run configuration.
        available: Resources of the cluster.
        where: Name of the cluster in the error message.
        without: Pools that are not started.

    Raises:
        PlanError: The cluster has too few CPUs or GPUs.
    """
    for demand in (generation_demand(config), demand_by_pool(config)):
        _require_room_for({pool: each for pool, each in demand.items() if pool not in without}, available, where)


def require_labelled_room(config: RunConfig, by_label: Mapping[str, Resources]) -> None:
    """Check that the labelled nodes can place a run with `cluster.pool_labels`.

    Args:
        config: Run configuration.
        by_label: Total resources of the nodes by their `rlad.io/pool` label.

    Raises:
        PlanError: A label is missing, or its nodes have too few CPUs or GPUs.
    """
    if HEAD_POOL not in by_label:
        raise PlanError(f"cluster.pool_labels requires a node labelled {POOL_LABEL}={HEAD_POOL}: {_LABELLING}")
    for demand in (generation_demand(config), demand_by_pool(config)):
        for pool, requested in demand.items():
            label = label_of(pool)
            if label not in by_label:
                raise PlanError(f"cluster.pool_labels requires a node labelled {POOL_LABEL}={label}: {_LABELLING}")
            _require_room_for({pool: requested}, by_label[label], f"the node group {POOL_LABEL}={label}")


def _require_room_for(demand: dict[str, Resources], available: Resources, where: str) -> None:
    for kind in ("cpus", "gpus"):
        requested, has = sum(getattr(pool, kind) for pool in demand.values()), getattr(available, kind)
        if requested > has + 1e-6:
            shares = ", ".join(
                f"{name} {getattr(pool, kind):g}" for name, pool in demand.items() if getattr(pool, kind)
            )
            raise PlanError(
                f"too few {kind.upper().replace('S', 's')}: the pools need {requested:g} ({shares}), "
                f"{where} has {has:g}; use fewer or smaller workers, or a larger cluster"
            )
