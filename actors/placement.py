"""Where a pool's workers run: on the nodes that carry its label, when a run is told to look for it."""

from __future__ import annotations

from rlad.config import ClusterConfig

POOL_LABEL = "rlad.io/pool"
"""Label of a Ray node. Its value is a pool's name as `rlad plan` prints it, or `head` for the node of the driver and the broker."""

HEAD_POOL = "head"


def selector_of(cluster: ClusterConfig, pool: str) -> dict[str, str]:
    """Ray's `label_selector` for a pool's workers; empty, which any node satisfies, unless `cluster.pool_labels` is on."""
    return {POOL_LABEL: pool} if cluster.pool_labels else {}
