"""A run with pool labels is refused before it starts if labelled nodes are missing or too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cluster.resources import Resources, require_labelled_room
from rlad.config import RunConfig, load_run_config
from rlad.errors import PlanError

KK = Path(__file__).parents[4] / "configs" / "qwen3_0.6b_kk_2k.yaml"
# Exactly what the run asks for: 4 rollout workers, 2 teacher replicas and 2 ranks of a GPU and 4 CPUs, 2 verifiers of 4
# CPUs.
NODES = {
    "head": Resources(cpus=0, gpus=0),
    "rollout": Resources(cpus=16, gpus=4),
    "teacher": Resources(cpus=8, gpus=2),
    "verifier": Resources(cpus=8, gpus=0),
    "learner": Resources(cpus=8, gpus=2),
}


def test_nodes_of_exactly_the_required_size_are_accepted() -> None:
    require_labelled_room(load_run_config(KK), NODES)


@pytest.mark.parametrize("pool", NODES)
def test_a_pool_without_a_node_is_named(pool: str) -> None:
    with pytest.raises(PlanError, match=f"no node is labelled rlad.io/pool={pool}"):
        require_labelled_room(load_run_config(KK), {name: has for name, has in NODES.items() if name != pool})


def test_room_on_the_nodes_of_other_pools_does_not_count() -> None:
    nodes = NODES | {"rollout": Resources(cpus=16, gpus=3), "learner": Resources(cpus=8, gpus=8)}
    with pytest.raises(PlanError, match=r"need 4 \(rollout 4\), what is labelled rlad.io/pool=rollout has 3"):
        require_labelled_room(load_run_config(KK), nodes)


def test_the_teacher_of_offline_distillation_needs_labelled_nodes_too() -> None:
    offline = {"rollout": {"workers": 2, "gpus_per_worker": 4}}
    config = RunConfig.model_validate(
        {**load_run_config(KK).model_dump(), "objective": {"name": "sft"}, "offline": offline}
    )
    with pytest.raises(PlanError, match=r"need 8 \(teacher 8\), what is labelled rlad.io/pool=teacher has 2"):
        require_labelled_room(config, NODES)
    require_labelled_room(config, NODES | {"teacher": Resources(cpus=8, gpus=8)})
