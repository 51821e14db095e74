"""Downloads of models to the nodes of a cluster, before the pools start: their deadlines do not include downloads."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool.placement import POOL_LABEL, label_of
from actors.remote_errors import as_rlad_error
from rlad.config import ClusterConfig
from rlad.models.locations import fetch_model
from rlad.models.references import ReferenceKind, parse_model

# Deadline for the result of a task that has ended.
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolModel:
    """Model that the workers of a pool load.

    Attributes:
        pool: Name of the pool.
        location: Location of the model.
        on_gpu: Whether the workers run on GPUs.
    """

    pool: str
    location: str
    on_gpu: bool


def starts_local_cluster(config: ClusterConfig) -> bool:
    """Return whether a run starts Ray on this machine instead of joining a cluster."""
    return config.address is None and "RAY_ADDRESS" not in os.environ


def is_fetched(location: str) -> bool:
    """Return whether nodes fetch a model. Directories are on storage that all of them see."""
    return parse_model(location).kind not in (ReferenceKind.DIRECTORY, ReferenceKind.STARTER)


def downloads_by_node(
    nodes: Collection[dict[str, Any]], models: Collection[PoolModel], *, pool_labels: bool
) -> dict[str, list[str]]:
    """Return the locations that each live node needs, by node id.

    Args:
        nodes: Nodes as `ray.nodes()` returns them.
        models: Models of the pools.
        pool_labels: Whether a pool runs on nodes with its label only.
    """
    needed: dict[str, list[str]] = {}
    for node in nodes:
        if not node["Alive"]:
            continue
        has_gpu, label = node["Resources"].get("GPU", 0) > 0, node["Labels"].get(POOL_LABEL)
        locations = {
            model.location
            for model in models
            if is_fetched(model.location)
            and (label == label_of(model.pool) if pool_labels else has_gpu or not model.on_gpu)
        }
        if locations:
            needed[node["NodeID"]] = sorted(locations)
    return needed


def fetch_on_nodes(config: ClusterConfig, models: Collection[PoolModel]) -> Iterator[tuple[int, int]]:
    """Download the models of the pools on every node that may run a worker. Requires a connection to the cluster.

    Nodes that join later download when their first worker starts.

    Yields:
        Number of finished nodes, and of all nodes; first with 0 finished nodes, and nothing if no node downloads.

    Raises:
        RladError: The error of a download.
    """
    nodes = ray.nodes()
    needed = downloads_by_node(nodes, models, pool_labels=config.pool_labels)
    if not needed:
        return
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
    yield 0, len(needed)
    running = {
        _fetch.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(locations): node
        for node, locations in needed.items()
    }
    waiting = list(running)
    while waiting:
        # unlimited wait: a download may take hours; its connections have timeouts, and Ray reports a lost node
        ready, waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(ready, timeout=_READY_TIMEOUT_S)
        except Exception as error:
            raise as_rlad_error(error, who=f"the download on node {names[running[ready[0]]]}") from error
        yield len(needed) - len(waiting), len(needed)


@ray.remote(num_cpus=0)
def _fetch(locations: list[str]) -> None:
    for location in locations:
        fetch_model(location)
