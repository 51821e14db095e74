"""Nodes that download models before the pools start."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.cluster.node_models import PoolModel, downloads_by_node, is_fetched

STUDENT = f"team/student@{'a' * 40}"
TEACHER = f"team/teacher@{'b' * 40}"
MODELS = [
    PoolModel(pool="rollout", location=STUDENT, on_gpu=True),
    PoolModel(pool="learner", location=STUDENT, on_gpu=True),
    PoolModel(pool="teacher", location=TEACHER, on_gpu=True),
    PoolModel(pool="reference", location="/models/reference", on_gpu=False),
]


def node(name: str, *, gpus: int, label: str | None = None, is_alive: bool = True) -> dict[str, Any]:
    labels = {} if label is None else {"rlad.io/pool": label}
    return {"NodeID": name, "Alive": is_alive, "Resources": {"CPU": 8.0, "GPU": gpus}, "Labels": labels}


def test_every_live_node_with_the_device_of_a_pool_downloads_its_model() -> None:
    nodes = [node("a", gpus=8), node("b", gpus=0), node("c", gpus=8, is_alive=False)]
    assert downloads_by_node(nodes, MODELS, pool_labels=False) == {"a": sorted([STUDENT, TEACHER])}
    on_cpu = [PoolModel(pool="rollout", location=STUDENT, on_gpu=False)]
    assert downloads_by_node(nodes, on_cpu, pool_labels=False) == {"a": [STUDENT], "b": [STUDENT]}


def test_labelled_nodes_download_the_model_of_their_pool_only() -> None:
    nodes = [node("a", gpus=8, label="rollout"), node("b", gpus=8, label="teacher"), node("c", gpus=8, label="head")]
    assert downloads_by_node(nodes, MODELS, pool_labels=True) == {"a": [STUDENT], "b": [TEACHER]}


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (STUDENT, True),
        ("s3://bucket/model#0123", True),
        ("registry:kk@3?in=s3://bucket/registry", True),
        ("/models/student", False),
        ("starter:kk/student", False),
    ],
)
def test_directories_are_shared_by_all_nodes(location: str, expected: bool) -> None:
    assert is_fetched(location) is expected
