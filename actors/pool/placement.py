"""Where a pool's workers run: on the nodes that carry its label, when a run is told to look for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # with it would come all models of the configuration, which an actor has no use for
    from rlad.config import ClusterConfig

POOL_LABEL = "rlad.io/pool"
"""Label of a Ray node. Its value is a pool's name as `rlad plan` prints it, or `head` for the node of the driver and the broker."""

HEAD_POOL = "head"


def label_of(pool: str) -> str:
    """The label's value for a pool, whose name may hold more (a task's) than Ray and Kubernetes take in one."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", pool)[:63].rstrip("_.-")


def selector_of(cluster: ClusterConfig, pool: str) -> dict[str, str]:
    """Ray's `label_selector` for a pool's workers; empty, which any node satisfies, unless `cluster.pool_labels` is on."""
    return {POOL_LABEL: label_of(pool)} if cluster.pool_labels else {}


def reward_pool_name(task: str) -> str:
    """The name of the pool that scores a task, in placement, plan and logs."""
    return f"reward_{task}"
