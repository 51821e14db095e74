"""Packages that a run needs for its devices."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.environment.check import Check
from pipelines.environment.packages import Packages, collect_packages, package_checks
from rlad.config import EvaluationSuite, RunConfig
from rlad.errors import PlanError
from rlad.verifiers import reward_models


def device_checks(config: RunConfig | EvaluationSuite, packages: Packages) -> Iterator[Check]:
    """Check that the builds support the devices of a run's pools.

    Args:
        config: Configuration of the run or evaluation.
        packages: Packages of the machines that run it.
    """
    on_gpu, engines_on_cpu = _pools_on_gpu(config), _vllm_pools_on_cpu(config)
    if on_gpu and packages.torch_cuda is None:
        yield Check(
            name="devices",
            status="error",
            detail=f"{on_gpu[0]} asks for GPUs, but PyTorch here is a CPU build",
            remedy="Make the environment with `make setup-gpu`, on every node.",
        )
    elif engines_on_cpu and packages.has_gpu_engine and packages.torch_cuda is not None:
        yield Check(
            name="devices",
            status="error",
            detail=f"{engines_on_cpu[0]} is on CPU, but vLLM here is a GPU build, which has no CPU engine",
            remedy="Use a configuration for GPUs (configs/smoke_gpu.yaml), or the environment of `make setup`.",
        )
    else:
        yield Check(name="devices", status="ok", detail="the packages support the devices of all pools")


def require_packages(config: RunConfig | EvaluationSuite) -> None:
    """Refuse a run that the installed packages cannot execute.

    Raises:
        PlanError: The packages mix builds, or do not support the devices of the run.
    """
    packages = collect_packages()
    builds = next(check for check in package_checks(packages) if check.name == "builds")
    for check in (builds, *device_checks(config, packages)):
        if check.status == "error":
            raise PlanError(f"{check.detail}. {check.remedy}")


def _pools_on_gpu(config: RunConfig | EvaluationSuite) -> list[str]:
    gpus = {"rollout": config.rollout.gpus_per_worker}
    gpus |= {f"reward model {task}": model.gpus_per_worker for task, model in reward_models(config.verifiers).items()}
    if isinstance(config, RunConfig):
        gpus |= {pool: model.gpus_per_replica for pool, model in config.scoring_pools.items()}
        gpus["learner"] = config.learner.gpus_per_rank
    return [pool for pool, number in gpus.items() if number]


def _vllm_pools_on_cpu(config: RunConfig | EvaluationSuite) -> list[str]:
    found = [] if config.rollout.gpus_per_worker else ["rollout"]
    if isinstance(config, RunConfig):
        found += [
            pool
            for pool, model in config.scoring_pools.items()
            if model.engine == "vllm" and not model.gpus_per_replica
        ]
    return found
