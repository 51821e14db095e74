"""A run with real engines on a local cluster of labelled nodes: every pool is placed on its own node.

Each worker node is large enough for all pools. The head has no CPUs for Ray, as with `rlad deploy render`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import actors as all_actors
from ray.cluster_utils import Cluster
from rich.console import Console

from actors.pool.placement import POOL_LABEL
from pipelines.distill import distill
from pipelines.pretrain import ensure_starters_of
from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config
from rlad.errors import PlanError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
POOLS = ("head", "rollout", "teacher", "verifier", "learner")
SHORT = ["training.steps=1", "evaluation.every_steps=0", "evaluation.prompts.count=4", "checkpoints.every_steps=1"]
# Class name prefix in Ray of each pool's actors.
CLASSES = {
    "ExperienceBroker": "head",
    "RunController": "head",
    "RolloutWorker": "rollout",
    "ServeReplica:": "teacher",
    "VerifierWorker": "verifier",
    "RayTrainWorker": "learner",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(shutdown_at_exit=True)
    for pool in POOLS:
        cluster.add_node(num_cpus=0 if pool == "head" else 4, labels={POOL_LABEL: pool})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def pools_of_actors() -> dict[str, set[str]]:
    """Return the labels of the nodes of all actors, dead ones included, by class name prefix."""
    label = {node["NodeID"]: node["Labels"].get(POOL_LABEL, "none") for node in ray.nodes()}
    found: dict[str, set[str]] = defaultdict(set)
    details: dict[str, Any] = all_actors()
    for actor in details.values():
        for prefix in CLASSES:
            if actor["ActorClassName"].startswith(prefix):
                found[prefix].add(label[actor["Address"]["NodeID"]])
    return found


def test_pool_with_too_small_labelled_nodes_is_refused_before_the_start(cluster: Cluster, tmp_path: Path) -> None:
    settings = load_run_config(SMOKE, [*SHORT, "cluster.pool_labels=true", "learner.ranks=20"])
    ensure_starters_of(settings, Console(quiet=True))
    with pytest.raises(PlanError, match=r"need 10 \(learner 10\), the node group rlad.io/pool=learner has 4"):
        distill(settings, RunDirectory(tmp_path / "run"), resume=False, console=Console(quiet=True))
    assert pools_of_actors() == {}


@pytest.mark.slow
def test_every_pool_runs_on_the_node_with_its_label(cluster: Cluster, tmp_path: Path) -> None:
    settings = load_run_config(SMOKE, [*SHORT, "cluster.pool_labels=true"])
    ensure_starters_of(settings, Console(quiet=True))
    distill(settings, RunDirectory(tmp_path / "run"), resume=False, console=Console(quiet=True))
    assert pools_of_actors() == {prefix: {pool} for prefix, pool in CLASSES.items()}
