"""Pod sizes: room for every worker of a pool, and memory for every worker of a pod."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cluster.resources import Resources
from pipelines.kubernetes import sizing
from pipelines.kubernetes.sizing import PodGroup, SizingOptions, nodes_needed, pod_groups
from pipelines.planning.pool_plans import PoolPlan, pool_plans
from rlad.config import RunConfig, load_run_config
from rlad.errors import PlanError

CONFIGS = Path(__file__).parents[4] / "configs"
SMOKE = load_run_config(CONFIGS / "smoke_cpu.yaml")


def options(**changes: Any) -> SizingOptions:
    return SizingOptions(**{"max_workers": {}, "memory_gib": {}, **changes})


def groups_of(config: RunConfig, **changes: Any) -> dict[str, PodGroup]:
    return {group.pool: group for group in pod_groups([config], options(**changes))}


def workers_that_ray_places(group: PodGroup, cpus: float, gpus: float) -> int:
    """Count in units of 0.0001, as Ray does."""
    capacity = [(group.cpus, cpus), (group.gpus, gpus)]
    return min(round(has * 10_000) // round(takes * 10_000) for has, takes in capacity if takes)


@settings(deadline=None)
@given(
    pool=st.sampled_from(["rollout", "verifier", "learner"]),
    workers=st.integers(1, 64),
    cpus=st.integers(1, 800).map(lambda hundredths: hundredths / 100),
    gpus=st.one_of(st.just(0.0), st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0, 2.0, 4.0, 8.0])),
)
def test_every_worker_has_room_and_ray_places_no_more_than_planned(
    pool: str, workers: int, cpus: float, gpus: float
) -> None:
    plan = PoolPlan(
        pool=pool, workers=workers, resources=Resources(cpus=workers * cpus, gpus=workers * gpus), worker_gib=2.0
    )
    group = sizing._group(plan, SMOKE, options(), common=workers)
    assert workers_that_ray_places(group, cpus, gpus) == group.workers_per_pod
    assert group.replicas * group.workers_per_pod >= workers
    assert (group.replicas - 1) * group.workers_per_pod < workers
    assert group.gpus <= 8


@pytest.mark.parametrize(
    ("ranks", "per_rank", "pods", "gpus"),
    [(16, 1, 2, 8), (2, 1, 1, 2), (12, 1, 2, 6), (7, 1, 1, 7), (11, 1, 11, 1), (8, 4, 4, 8)],
)
def test_ranks_share_pods_evenly_up_to_the_gpus_of_a_node(ranks: int, per_rank: int, pods: int, gpus: int) -> None:
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml",
        [f"learner.ranks={ranks}", f"learner.gpus_per_rank={per_rank}", "learner.sequence_parallel=1"],
    )
    learner = groups_of(config, gpu_memory_gib=141)["learner"]
    assert (learner.replicas, learner.gpus) == (pods, gpus)


def test_cpu_memory_follows_the_plan(make_model: Callable[..., Path]) -> None:
    model = make_model()
    config = load_run_config(
        CONFIGS / "smoke_cpu.yaml", [f"student.path={model}", f"teacher.path={model}", "rollout.workers=3"]
    )
    plans = {plan.pool: plan for plan in pool_plans(config)}
    groups = groups_of(config)
    # Half a CPU per worker: two workers per pod. Memory: both workers and 1 GiB for Ray, plus 30% for the object store.
    assert (groups["rollout"].replicas, groups["rollout"].workers_per_pod) == (2, 2)
    assert plans["rollout"].worker_gib is not None
    assert groups["rollout"].memory_gib == math.ceil((2 * plans["rollout"].worker_gib + 1) / 0.7)
    assert not any(group.is_memory_guessed for group in groups.values())
    assert groups_of(config, memory_gib={"rollout": 5})["rollout"].memory_gib == 5


def test_memory_of_a_missing_model_is_marked_as_a_guess() -> None:
    groups = groups_of(
        load_run_config(CONFIGS / "smoke_cpu.yaml", ["student.path=/elsewhere", "teacher.path=/elsewhere"])
    )
    assert {pool for pool, group in groups.items() if group.is_memory_guessed} == {"rollout", "teacher", "learner"}


def test_gpu_pods_have_as_much_host_memory_as_gpu_memory() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    assert {pool: group.memory_gib for pool, group in groups_of(config, gpu_memory_gib=141).items() if group.gpus} == {
        "rollout": 8 * 141,
        "teacher": 8 * 141,
        "learner": 8 * 141,
    }


def test_offloaded_optimizer_state_needs_a_known_student(make_model: Callable[..., Path]) -> None:
    changes = ["learner.offload_optimizer=true", "rollout.max_prompt_tokens=8", "rollout.max_response_tokens=8"]
    unknown = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*changes, "student.path=/models/none"])
    with pytest.raises(PlanError, match="set the memory of a pod"):
        groups_of(unknown)
    assert groups_of(unknown, memory_gib={"learner": 300})["learner"].memory_gib == 300
    known = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*changes, f"student.path={make_model()}"])
    # Fewer than a million parameters: the state of both ranks rounds up to one GiB.
    assert groups_of(known)["learner"].memory_gib == 161


def test_worker_that_does_not_fit_into_its_gpus_is_refused(make_model: Callable[..., Path]) -> None:
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [f"student.path={make_model()}"])
    with pytest.raises(PlanError, match="a rollout worker needs about 1 GiB and has 1 GPUs of 0.5 GiB"):
        groups_of(config, gpu_memory_gib=0.5)
    with pytest.raises(PlanError, match="a node has 1"):
        groups_of(load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml"), gpus_per_node=1)


def test_groups_have_room_for_each_of_several_runs() -> None:
    small, large = (
        load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [f"rollout.workers={number}"]) for number in (2, 6)
    )
    without_teacher = RunConfig.model_validate({**small.model_dump(), "objective": {"name": "grpo"}, "teacher": None})
    groups = {group.pool: group for group in pod_groups([without_teacher, small, large], options())}
    # 2 and 6 rollout workers: three pods of two.
    assert {pool: (group.replicas, group.workers_per_pod) for pool, group in groups.items()} == {
        "rollout": (3, 2),
        "verifier": (2, 1),
        "learner": (1, 2),
        "teacher": (1, 2),
    }


def place(groups: Iterable[PodGroup], *, nodes: int, gpus_per_node: int) -> list[str]:
    """Place pods as Kubernetes does: in the order of the manifest, each on the node with the most free GPUs.

    Returns:
        Pools of the pods for which no node has room.
    """
    free, waiting = [gpus_per_node] * nodes, []
    for group in groups:
        for _ in range(group.replicas if group.gpus else 0):
            free.sort()
            if free[-1] >= group.gpus:
                free[-1] -= group.gpus
            else:
                waiting.append(group.pool)
    return waiting


@pytest.mark.parametrize(
    ("config", "nodes"), [("qwen3_0.6b_kk_2k.yaml", 1), ("qwen3_1.7b_kk_8k.yaml", 1), ("qwen3_8b_math_30k.yaml", 8)]
)
def test_pods_of_the_shipped_runs_fill_their_nodes_although_the_scheduler_spreads(config: str, nodes: int) -> None:
    groups = pod_groups([load_run_config(CONFIGS / config)], options(gpu_memory_gib=141))
    assert place(groups, nodes=nodes, gpus_per_node=8) == []
    assert nodes_needed(groups, 8) == nodes
    assert sum(group.replicas * group.gpus for group in groups) == 8 * nodes


def test_pods_of_single_workers_do_not_fit_although_the_nodes_have_as_many_gpus() -> None:
    """40 pods of 1 GPU, 4 of 2 and 2 of 8 in this order: the reason for pods of several workers, largest first."""
    shape = {"workers_per_pod": 1, "cpus": 4, "memory_gib": 1, "is_memory_guessed": False}
    groups = [
        PodGroup(pool=pool, replicas=pods, max_replicas=pods, gpus=gpus, **shape)
        for pool, pods, gpus in (("rollout", 40, 1), ("teacher", 4, 2), ("learner", 2, 8))
    ]
    assert place(groups, nodes=8, gpus_per_node=8) == ["learner", "learner"]
    assert nodes_needed(groups, 8) > 8


@settings(deadline=None, max_examples=60)
@given(
    rollout=st.integers(1, 48),
    teachers=st.integers(1, 12),
    per_teacher=st.sampled_from([1, 2, 4, 8]),
    ranks=st.sampled_from([1, 2, 4, 8, 16, 24, 32]),
)
def test_pods_of_any_division_fit_on_fewest_nodes(rollout: int, teachers: int, per_teacher: int, ranks: int) -> None:
    sizes = {"rollout.workers": rollout, "learner.ranks": ranks, "teacher.replicas": teachers}
    changes = [*(f"{name}={size}" for name, size in sizes.items()), "learner.sequence_parallel=1"]
    changes += [f"teacher.gpus_per_replica={per_teacher}", f"teacher.tensor_parallel={per_teacher}"]
    unknown = ["student.path=/none", "teacher.path=/none"]
    groups = pod_groups([load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", [*changes, *unknown])], options())
    fewest = math.ceil((rollout + teachers * per_teacher + ranks) / 8)
    assert place(groups, nodes=fewest, gpus_per_node=8) == []


def test_growing_pools_grow_by_whole_pods() -> None:
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml")
    sizes = {limit: groups_of(config, max_workers={"rollout": limit})["rollout"] for limit in (6, 7, 12)}
    assert {limit: (group.replicas, group.max_replicas, group.gpus) for limit, group in sizes.items()} == {
        6: (2, 3, 2),
        7: (4, 7, 1),
        12: (1, 3, 4),
    }
