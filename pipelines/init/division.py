"""Division of GPUs among the pools of a run: whole GPUs by the forecast, shares of GPUs where there are few."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pipelines.cluster.resources import demand_by_pool
from pipelines.forecast.assumptions import Assumptions, assumed_lengths, work_of_step
from pipelines.forecast.costs import Machine
from pipelines.forecast.devices import Device
from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.sizes import splits
from pipelines.planning.model_shape import ModelShape, shape_of
from pipelines.planning.pool_plans import gpu_memory_problems, learner_gib, run_pools
from rlad.config import RunConfig
from rlad.errors import PlanError

# Assumed ratio of the 99th percentile of response lengths to the median, as in `rlad plan`.
_TAIL = 10.0
# Share of the memory that weights and one sequence may take, so that an engine has room for many sequences.
_ENGINE_SHARE = 0.7
_GPUS_PER_ENGINE = (1, 2, 4, 8)


def divided(settings: dict[str, Any], gpus: int, device: Device) -> dict[str, Any]:
    """Return settings of a run with the sizes of its pools.

    The engines get the fewest GPUs that hold their model, and the learner the lowest ZeRO stage and memory saving that
    fits. Then the forecast chooses the numbers of workers with the shortest step.

    Args:
        settings: Settings of a run without sizes.
        gpus: Number of GPUs; 0 runs on CPU.
        device: Type of the GPUs.

    Raises:
        PlanError: The models do not fit on so few GPUs.
    """
    if gpus == 0:
        return settings
    student = shape_of(settings["student"]["path"])
    has_teacher = "teacher" in settings
    pools = 3 if has_teacher else 2
    if gpus < pools:
        return _shared(settings, gpus, device)
    frozen = {pool: shape_of(model.path) for pool, model in RunConfig.model_validate(settings).frozen_models.items()}
    for candidate in _candidates(settings, has_teacher=has_teacher):
        config = RunConfig.model_validate(candidate)
        if student is None or any(shape is None for shape in frozen.values()):
            return _by_rule(candidate, gpus, has_teacher=has_teacher)
        engines = sum(pool.gpus for name, pool in demand_by_pool(config).items() if name != "learner")
        largest = config.learner.model_copy(update={"ranks": max(1, gpus - int(engines))})
        if engines + 1 > gpus or learner_gib(student, largest) > device.memory_gib:
            continue
        if _engines_fit(config, student, frozen, device) and (found := _fastest(config, gpus, device)) is not None:
            return _with_sizes(candidate, found)
    raise PlanError(
        f"{gpus} {device.title} are too few for these models: raise --gpus, or choose smaller models or a "
        "--device with more memory"
    )


def _candidates(settings: dict[str, Any], *, has_teacher: bool) -> Iterator[dict[str, Any]]:
    """Yield settings with one worker in each pool, those that need fewer GPUs and save less memory first."""
    for teacher_gpus in _GPUS_PER_ENGINE if has_teacher else (1,):
        for rollout_gpus in _GPUS_PER_ENGINE:
            for zero_stage, offload in ((2, False), (3, False), (3, True)):
                candidate = copy.deepcopy(settings)
                candidate["rollout"] |= _engine(rollout_gpus, "worker")
                candidate["learner"] |= {
                    "zero_stage": zero_stage,
                    "offload_optimizer": offload,
                    "gpus_per_rank": 1,
                    "cpus_per_rank": 4,
                    "threads": 4,
                }
                if has_teacher:
                    candidate["teacher"] |= _engine(teacher_gpus, "replica")
                yield candidate


def _engine(gpus: int, unit: str) -> dict[str, Any]:
    return {"tensor_parallel": gpus, f"gpus_per_{unit}": gpus, f"cpus_per_{unit}": 4}


def _engines_fit(config: RunConfig, student: ModelShape, frozen: dict[str, ModelShape | None], device: Device) -> bool:
    engines = [pool for pool in run_pools(config, student, frozen) if pool.pool != "learner"]
    return not list(gpu_memory_problems(engines, _ENGINE_SHARE * device.memory_gib))


def _fastest(config: RunConfig, gpus: int, device: Device) -> dict[str, int] | None:
    lengths = assumed_lengths(config.rollout, median=None, tail=_TAIL)
    prompt_tokens = max(1, config.rollout.max_prompt_tokens // 4)
    work = work_of_step(lengths, groups=config.training.prompts_per_step, prompt_tokens=prompt_tokens)
    costs = PoolCosts(config, Machine(device=device, assumptions=Assumptions()), work)
    ranked = splits(costs, gpus, staleness=config.training.max_staleness)
    if not ranked:
        return None
    sizes = ranked[0].sizes
    return {"rollout": sizes.rollout, "learner": sizes.learner, **sizes.scorers}


def _by_rule(settings: dict[str, Any], gpus: int, *, has_teacher: bool) -> dict[str, Any]:
    """Return sizes for models of unknown size: a quarter each for teacher and learner, the rest for rollout."""
    quarter = max(1, gpus // 4)
    teacher = quarter if has_teacher else 0
    return _with_sizes(settings, {"teacher": teacher, "learner": quarter, "rollout": gpus - quarter - teacher})


def _with_sizes(settings: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    settings["rollout"]["workers"] = sizes["rollout"]
    settings["learner"]["ranks"] = sizes["learner"]
    if "teacher" in settings:
        settings["teacher"]["replicas"] = sizes["teacher"]
    return settings


def _shared(settings: dict[str, Any], gpus: int, device: Device) -> dict[str, Any]:
    """Return settings in which pools share GPUs: all of them one GPU, or two engines the first of two."""
    engines = 2 if "teacher" in settings else 1
    share, learner = (0.5, 1.0) if gpus > 1 else {1: (0.45, 0.55), 2: (0.3, 0.4)}[engines]
    settings = copy.deepcopy(settings)
    memory = round(share - 0.02, 2)  # what the processes need beside the engines' own reservation
    settings["rollout"] |= {"gpus_per_worker": share, "gpu_memory_fraction": memory, "cpus_per_worker": 2}
    settings["learner"] |= {"gpus_per_rank": learner, "cpus_per_rank": 2}
    if "teacher" in settings:
        settings["teacher"] |= {"gpus_per_replica": share, "gpu_memory_fraction": memory, "cpus_per_replica": 2}
    for offload in (False, True):
        settings["learner"]["offload_optimizer"] = offload
        config = RunConfig.model_validate(settings)
        frozen = {pool: shape_of(model.path) for pool, model in config.frozen_models.items()}
        pools = [p for p in run_pools(config, shape_of(config.student.path), frozen) if p.worker_gib is not None]
        problems = list(gpu_memory_problems(pools, device.memory_gib))
        if not problems:
            return settings
    raise PlanError(f"{gpus} {device.title} cannot be shared by these models ({problems[0]}): raise --gpus")
