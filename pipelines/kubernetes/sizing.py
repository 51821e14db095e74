"""Number and size of pods: the pools of `rlad plan`, divided into pods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.planning.pool_plans import PoolPlan, gpu_memory_problems, offloaded_gib, pool_plans
from rlad.config import EvaluationSuite, RunConfig
from rlad.errors import PlanError

# Share of a pod's memory for processes. Ray's object store takes the other 30%.
_PROCESS_SHARE = 0.7
# Memory of Ray's own processes in a pod.
_RAY_GIB = 1.0
# Assumed memory of a CPU worker whose model is not on this machine. Marked as a guess in the output.
_UNKNOWN_GIB = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGroup:
    """Pods of one pool, a worker group of the cluster.

    Attributes:
        pool: Name of the pool.
        replicas: Number of pods that the run requires.
        max_replicas: Maximum number of pods.
        workers_per_pod: Number of the pool's workers that Ray places in one pod.
        cpus: CPUs of one pod.
        gpus: GPUs of one pod.
        memory_gib: Memory of one pod, GiB.
        is_memory_guessed: True if the model is not on this machine, so its memory is unknown.
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
    """Sizes that a run's configuration does not contain.

    Attributes:
        gpu_memory_gib: Memory of one GPU, GiB.
        gpus_per_node: GPUs of one node. Workers on GPUs share a pod up to this number: a node then holds one copy of
            the weights for all of them, and learner ranks use the links between its GPUs.
        max_workers: Maximum number of workers by pool; a pool that is not listed keeps the run's number.
        memory_gib: Memory of one pod by pool, GiB, instead of the computed one.
    """

    gpu_memory_gib: float = 80.0
    gpus_per_node: int = 8
    max_workers: Mapping[str, int]
    memory_gib: Mapping[str, int]


def pod_groups(runs: Sequence[RunConfig | EvaluationSuite], options: SizingOptions) -> tuple[PodGroup, ...]:
    """Compute the pod groups that have room for each of the runs, which are carried out one after the other.

    The groups with the largest pods come first. A scheduler that spreads pods over nodes, in this order, leaves room
    for all of them if the sizes divide each other, as 1, 2, 4 and 8 GPUs do: when a pod is placed, the free GPUs of
    every node are a multiple of its size.

    Raises:
        PlanError: A worker does not fit into its GPUs, an option names an unknown pool, or `max_workers` is lower than
            the run's number of workers.
    """
    groups: dict[str, PodGroup] = {}
    planned = [(run, pool_plans(run)) for run in runs]
    workers: dict[str, int] = dict(options.max_workers)
    for _, plans in planned:
        for plan in plans:
            workers[plan.pool] = math.gcd(plan.workers, workers.get(plan.pool, 0))
    for run, plans in planned:
        for problem in gpu_memory_problems(plans, options.gpu_memory_gib):
            raise PlanError(f"{problem}: use more GPUs per worker, or GPUs with more memory (--gpu-memory-gib)")
        for plan in plans:
            group = _group(plan, run, options, common=workers[plan.pool])
            groups[plan.pool] = _larger(groups[plan.pool], group) if plan.pool in groups else group
    unknown = [pool for pool in {**options.max_workers, **options.memory_gib} if pool not in groups]
    if unknown:
        raise PlanError(f"unknown pool {unknown[0]}: the pools are {', '.join(groups)}")
    largest_first = sorted(groups.values(), key=lambda group: -group.gpus)
    return tuple(_adjusted(largest_first, options))


def nodes_needed(groups: Iterable[PodGroup], gpus_per_node: int) -> int:
    """Return the nodes that pods with GPUs need, if each goes to the emptiest node in the order of the groups."""
    pods = [group.gpus for group in groups if group.gpus for _ in range(group.replicas)]
    nodes = math.ceil(sum(pods) / gpus_per_node)
    while not _spreads(pods, [gpus_per_node] * nodes):
        nodes += 1
    return nodes


def _spreads(pods: Sequence[int], free: list[int]) -> bool:
    for pod in pods:
        emptiest = max(range(len(free)), key=free.__getitem__)
        if free[emptiest] < pod:
            return False
        free[emptiest] -= pod
    return True


def _group(plan: PoolPlan, run: RunConfig | EvaluationSuite, options: SizingOptions, *, common: int) -> PodGroup:
    """Return the pods of one pool.

    Args:
        plan: The pool.
        run: The run that it belongs to.
        options: Sizes of nodes and pools.
        common: Greatest common divisor of the pool's numbers of workers: in all runs, and at most.
    """
    cpus, gpus = plan.resources.cpus / plan.workers, plan.resources.gpus / plan.workers
    if gpus > options.gpus_per_node:
        raise PlanError(
            f"a {plan.pool} worker needs {gpus:g} GPUs, a node has {options.gpus_per_node} (--gpus-per-node)"
        )
    if gpus >= 1:
        per_pod = _workers_per_pod(plan.pool, common, int(gpus), options.gpus_per_node)
    else:
        # Kubernetes and KubeRay count whole CPUs and GPUs, so workers with fractions share a pod, as Ray places them.
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


def _workers_per_pod(pool: str, workers: int, gpus: int, gpus_per_node: int) -> int:
    """Return the workers of a pod: a divisor of all, whose GPUs divide those of a node.

    Pods of several pools then fill nodes. Learner ranks share as few pods as possible, also if their GPUs do not divide
    those of a node.
    """
    fitting = [number for number in range(1, gpus_per_node // gpus + 1) if workers % number == 0]
    dividing = [number for number in fitting if gpus_per_node % (number * gpus) == 0]
    return max(fitting if pool == "learner" or not dividing else dividing)


def _memory_gib(
    plan: PoolPlan, run: RunConfig | EvaluationSuite, options: SizingOptions, workers: int, gpus: float
) -> int:
    """Return the memory of a pod with `workers` workers.

    CPU: the planned memory plus Ray's share. GPU: the memory of the GPUs, since weights pass through host memory once
    while loading, and the engines' results are far smaller.
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
                "learner.offload_optimizer keeps optimizer state in host memory, and its size is unknown because the "
                "student is not on this machine: set the memory of a pod (--memory learner=GIB)"
            )
        memory += workers * offloaded
    return math.ceil(memory)


def _larger(first: PodGroup, second: PodGroup) -> PodGroup:
    """Return a group whose pods have room for the workers of both groups: fewer workers per pod, larger pods."""
    return replace(
        first,
        replicas=max(first.replicas, second.replicas),  # each pod holds at least as many workers as before
        max_replicas=max(first.max_replicas, second.max_replicas),
        workers_per_pod=min(first.workers_per_pod, second.workers_per_pod),
        cpus=max(first.cpus, second.cpus),
        gpus=max(first.gpus, second.gpus),
        memory_gib=max(first.memory_gib, second.memory_gib),
        is_memory_guessed=first.is_memory_guessed or second.is_memory_guessed,
    )


def _adjusted(groups: Iterable[PodGroup], options: SizingOptions) -> Iterator[PodGroup]:
    for group in groups:
        limit = options.max_workers.get(group.pool)
        if limit is None:
            yield group
            continue
        max_replicas = math.ceil(limit / group.workers_per_pod)
        if max_replicas < group.replicas:
            raise PlanError(
                f"--max-workers {group.pool}={limit} is lower than the run's number of workers: "
                f"it needs {group.replicas} pods of {group.workers_per_pod} workers"
            )
        yield replace(group, max_replicas=max_replicas)
