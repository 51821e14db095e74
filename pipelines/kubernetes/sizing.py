"""How many pods each pool needs and how large they are: the pools of `rlad plan`, cut into pods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.planning.pool_plans import PoolPlan, gpu_memory_problems, offloaded_gib, pool_plans
from rlad.config import EvaluationSuite, RunConfig
from rlad.errors import PlanError

# Ray's object store takes 30% of a pod's memory; the rest is what processes may use.
_PROCESS_SHARE = 0.7
# Ray's own processes in a pod.
_RAY_GIB = 1.0
# A worker on CPU whose model is not on this machine. A guess, and marked as one.
_UNKNOWN_GIB = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGroup:
    """The pods of one pool: a worker group of the cluster.

    Attributes:
        replicas: pods that the run cannot start without.
        max_replicas: pods up to which the group may be scaled.
        workers_per_pod: the pool's workers that Ray can place in one pod, never more.
        cpus, gpus, memory_gib: of one pod.
        is_memory_guessed: the model is not on this machine, so nothing is known of it.
    """

    pool: str
    replicas: int
    max_replicas: int
    workers_per_pod: int
    cpus: int
    gpus: int
    memory_gib: int
    is_memory_guessed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingOptions:
    """What a run's configuration does not say.

    Attributes:
        gpu_memory_gib: of one GPU.
        gpus_per_node: GPUs of one machine: ranks of the learner share a pod up to that, for their fast links.
        max_workers: by pool, up to how many workers it may be scaled; by default as many as the run has.
        memory_gib: by pool, of a pod, in place of what is computed.
    """

    gpu_memory_gib: float = 80.0
    gpus_per_node: int = 8
    max_workers: Mapping[str, int]
    memory_gib: Mapping[str, int]


def pod_groups(runs: Sequence[RunConfig | EvaluationSuite], options: SizingOptions) -> tuple[PodGroup, ...]:
    """The groups that hold every one of the runs, which take place one after the other.

    Raises:
        PlanError: a worker does not fit into its GPUs, or an option names a pool that no run has, or asks for fewer workers than the run has.
    """
    groups: dict[str, PodGroup] = {}
    for run in runs:
        plans = pool_plans(run)
        for problem in gpu_memory_problems(plans, options.gpu_memory_gib):
            raise PlanError(f"{problem}: give each worker more GPUs, or machines with larger ones (--gpu-memory-gib)")
        for plan in plans:
            group = _group(plan, run, options)
            groups[plan.pool] = _larger(groups[plan.pool], group) if plan.pool in groups else group
    unknown = [pool for pool in {**options.max_workers, **options.memory_gib} if pool not in groups]
    if unknown:
        raise PlanError(f"no pool {unknown[0]}: the pools are {', '.join(groups)}")
    return tuple(_adjusted(groups.values(), options))


def _group(plan: PoolPlan, run: RunConfig | EvaluationSuite, options: SizingOptions) -> PodGroup:
    cpus, gpus = plan.resources.cpus / plan.workers, plan.resources.gpus / plan.workers
    if gpus > options.gpus_per_node:
        raise PlanError(
            f"a {plan.pool} worker needs {gpus:g} GPUs, a machine has {options.gpus_per_node} (--gpus-per-node)"
        )
    if plan.pool == "learner" and gpus >= 1:
        per_pod = _largest_divisor(plan.workers, at_most=int(options.gpus_per_node // gpus))
    else:
        # Kubernetes and KubeRay count whole CPUs and GPUs, so workers that take less share a pod; Ray would put as many there anyway.
        scarce = gpus or cpus
        per_pod = math.floor(math.ceil(scarce) / scarce + 1e-9)
    filled = min(per_pod, plan.workers)
    return PodGroup(
        pool=plan.pool,
        replicas=math.ceil(plan.workers / per_pod),
        max_replicas=math.ceil(plan.workers / per_pod),
        workers_per_pod=per_pod,
        cpus=math.ceil(per_pod * cpus - 1e-9),
        gpus=math.ceil(per_pod * gpus - 1e-9),
        memory_gib=_memory_gib(plan, run, options, filled, gpus),
        is_memory_guessed=plan.worker_gib is None and not gpus and plan.pool not in options.memory_gib,
    )


def _memory_gib(
    plan: PoolPlan, run: RunConfig | EvaluationSuite, options: SizingOptions, workers: int, gpus: float
) -> int:
    """Memory of a pod with so many workers.

    On CPU it is what the plan says, and Ray's share. On GPUs as much as they have: a worker's weights pass through it once on their way there, and
    what the engines give back is far smaller.
    """
    if plan.pool in options.memory_gib:
        return options.memory_gib[plan.pool]
    if not gpus:
        return math.ceil((workers * (plan.worker_gib or _UNKNOWN_GIB) + _RAY_GIB) / _PROCESS_SHARE)
    memory = workers * gpus * options.gpu_memory_gib
    if plan.pool == "learner" and isinstance(run, RunConfig) and run.learner.offload_optimizer:
        offloaded = offloaded_gib(run)
        if offloaded is None:
            raise PlanError(
                "learner.offload_optimizer keeps optimizer state in host memory, and the student is not on this machine to say how much: "
                "give the memory of a pod (--memory learner=GIB)"
            )
        memory += workers * offloaded
    return math.ceil(memory)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return max(divisor for divisor in range(1, min(number, at_most) + 1) if number % divisor == 0)


def _larger(one: PodGroup, other: PodGroup) -> PodGroup:
    """A group whose pods hold either's workers: as many of the smaller number a pod, in pods of the larger size."""
    return replace(
        one,
        replicas=max(one.replicas, other.replicas),  # no pod holds fewer workers than it did
        max_replicas=max(one.max_replicas, other.max_replicas),
        workers_per_pod=min(one.workers_per_pod, other.workers_per_pod),
        cpus=max(one.cpus, other.cpus),
        gpus=max(one.gpus, other.gpus),
        memory_gib=max(one.memory_gib, other.memory_gib),
        is_memory_guessed=one.is_memory_guessed or other.is_memory_guessed,
    )


def _adjusted(groups: Iterable[PodGroup], options: SizingOptions) -> Iterator[PodGroup]:
    for group in groups:
        most = options.max_workers.get(group.pool)
        if most is None:
            yield group
            continue
        max_replicas = math.ceil(most / group.workers_per_pod)
        if max_replicas < group.replicas:
            raise PlanError(
                f"--max-workers {group.pool}={most} is less than the run has: it needs {group.replicas} pods of {group.workers_per_pod} workers"
            )
        yield replace(group, max_replicas=max_replicas)
