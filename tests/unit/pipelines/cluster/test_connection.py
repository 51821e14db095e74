"""Start of a local cluster on a loaded machine, and refusal of a run whose labelled nodes are missing or too small."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources, require_labelled_room
from rlad.config import ClusterConfig, RunConfig, load_run_config
from rlad.errors import PlanError

KK = Path(__file__).parents[4] / "configs" / "qwen3_0.6b_kk_2k.yaml"
# Exactly the resources of the run: 4 rollout workers, 2 teacher replicas and 2 learner ranks with 1 GPU and 4 CPUs
# each; 2 verifiers with 4 CPUs each.
NODES = {
    "head": Resources(cpus=0, gpus=0),
    "rollout": Resources(cpus=16, gpus=4),
    "teacher": Resources(cpus=8, gpus=2),
    "verifier": Resources(cpus=8, gpus=0),
    "learner": Resources(cpus=8, gpus=2),
}


def test_nodes_with_exactly_the_needed_resources_are_enough() -> None:
    require_labelled_room(load_run_config(KK), NODES)


@pytest.mark.parametrize("pool", NODES)
def test_pool_without_a_labelled_node_is_named(pool: str) -> None:
    with pytest.raises(PlanError, match=f"requires a node labelled rlad.io/pool={pool}"):
        require_labelled_room(load_run_config(KK), {name: node for name, node in NODES.items() if name != pool})


def test_resources_of_other_pools_do_not_count() -> None:
    nodes = NODES | {"rollout": Resources(cpus=16, gpus=3), "learner": Resources(cpus=8, gpus=8)}
    with pytest.raises(PlanError, match=r"need 4 \(rollout 4\), the node group rlad.io/pool=rollout has 3"):
        require_labelled_room(load_run_config(KK), nodes)


def test_generating_teacher_of_an_offline_run_needs_labelled_nodes() -> None:
    offline = {"rollout": {"workers": 2, "gpus_per_worker": 4}}
    config = RunConfig.model_validate(
        {**load_run_config(KK).model_dump(), "objective": {"name": "sft"}, "offline": offline}
    )
    with pytest.raises(PlanError, match=r"need 8 \(teacher 8\), the node group rlad.io/pool=teacher has 2"):
        require_labelled_room(config, NODES)
    require_labelled_room(config, NODES | {"teacher": Resources(cpus=8, gpus=8)})


def start_slowly(monkeypatch: pytest.MonkeyPatch, *, slow_starts: int, error: Exception) -> list[str]:
    """Make Ray's start fail with `error` for the first `slow_starts` calls. Return a list that receives each call."""
    starts: list[str] = []

    def init(address: str, **_: object) -> None:
        starts.append(address)
        if len(starts) <= slow_starts:
            raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("pipelines.cluster.connection._restore_sigterm", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    return starts


SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed")


def test_local_cluster_that_starts_too_slowly_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = start_slowly(monkeypatch, slow_starts=2, error=SLOW)
    with connected(ClusterConfig()) as resources:
        assert resources.cpus == 3.0
    assert starts == ["local"] * 3


def test_local_cluster_that_never_starts_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = start_slowly(monkeypatch, slow_starts=9, error=SLOW)
    with pytest.raises(PlanError, match="did not start in 3 attempts.*when the machine is less loaded"):
        connected(ClusterConfig()).__enter__()
    assert len(starts) == 3


def test_other_faults_of_a_start_are_raised_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = RuntimeError("no space left on device")
    starts = start_slowly(monkeypatch, slow_starts=9, error=fault)
    with pytest.raises(RuntimeError, match="no space left"):
        connected(ClusterConfig()).__enter__()
    assert len(starts) == 1


def test_missing_cluster_is_refused_with_a_way_to_start_or_avoid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start_slowly(monkeypatch, slow_starts=1, error=ConnectionError("Could not find any running Ray instance."))
    with pytest.raises(PlanError, match="answers at auto.*Ray instance. Start one with `ray start --head`.*leave out"):
        connected(ClusterConfig(address="auto")).__enter__()
