"""What a run's pools ask of Ray, and whether a cluster has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.pool.placement import HEAD_POOL, POOL_LABEL, label_of, reward_pool_name
from rlad.config import RunConfig
from rlad.errors import PlanError
from rlad.verifiers import reward_models

_LABELLING = (
    "start nodes with `ray start --labels`, deploy what `rlad deploy render` writes, or turn cluster.pool_labels off"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPUs and GPUs, of a demand or of a cluster."""

    cpus: float
    gpus: float


def demand_by_pool(config: RunConfig) -> dict[str, Resources]:
    """What each pool of a run asks of Ray while it trains."""
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


def generation_demand(config: RunConfig) -> dict[str, Resources]:
    """What each pool of an offline run asks of Ray while the teacher makes traces; they are gone before it trains. Empty for other runs."""
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
                raise PlanError(
                    f"cluster.pool_labels is on, but no node is labelled {POOL_LABEL}={label}: {_LABELLING}"
                )
            _require_room_for({pool: wanted}, by_label[label], f"what is labelled {POOL_LABEL}={label}")


def _require_room_for(demand: dict[str, Resources], available: Resources, where: str) -> None:
    for kind in ("cpus", "gpus"):
        wanted, there = sum(getattr(pool, kind) for pool in demand.values()), getattr(available, kind)
        if wanted > there + 1e-6:
            shares = ", ".join(
                f"{name} {getattr(pool, kind):g}" for name, pool in demand.items() if getattr(pool, kind)
            )
            raise PlanError(
                f"too few {kind.upper().replace('S', 's')} for the placement: the pools need {wanted:g} ({shares}), {where} has {there:g}; "
                f"take fewer or smaller workers, or a larger cluster"
            )
