"""Placement of pools on labelled nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a run-time import would load all configuration models into every actor
    from rlad.config import ClusterConfig

POOL_LABEL = "rlad.io/pool"
"""Label of a Ray node.

Its value is a pool name as printed by `rlad plan`, or `head` for the node of the driver and the broker.
"""

HEAD_POOL = "head"


def label_of(pool: str) -> str:
    """Return the label value of a pool.

    A pool name can contain a task name with characters that Ray and Kubernetes do not allow in labels.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", pool)[:63].rstrip("_.-")


def selector_of(cluster: ClusterConfig, pool: str) -> dict[str, str]:
    """Return Ray's `label_selector` for the workers of a pool; empty (any node) if `cluster.pool_labels` is off."""
    return {POOL_LABEL: label_of(pool)} if cluster.pool_labels else {}


def reward_pool_name(task: str) -> str:
    """Return the name of the reward pool of a task, as used in placement, plans and logs."""
    return f"reward_{task}"
