"""Devices of Ray actors: one that reserves no GPU sees none, although its node has some."""

from __future__ import annotations

import os

import ray

from actors.engines.devices import device_name, hide_gpus
from pipelines.cluster.connection import WORKER_ENVIRONMENT


@ray.remote(num_cpus=0)
class Process:
    """Actor that reads its environment."""

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def hide(self) -> None:
        hide_gpus()


def test_actor_without_a_gpu_sees_none_although_its_node_has_some() -> None:
    on_a_node_with_gpus = {"CUDA_VISIBLE_DEVICES": "4,5"}
    run, other = (
        Process.options(num_gpus=0, runtime_env={"env_vars": variables | on_a_node_with_gpus}).remote()
        for variables in (WORKER_ENVIRONMENT, {})
    )
    assert ray.get(run.variable.remote("CUDA_VISIBLE_DEVICES"), timeout=60) == ""
    # Ray's default, for actors whose environment is not the run's: a learner rank hides the GPUs itself.
    assert ray.get(other.variable.remote("CUDA_VISIBLE_DEVICES"), timeout=60) == "4,5"
    ray.get(other.hide.remote(), timeout=60)
    assert ray.get(other.variable.remote("CUDA_VISIBLE_DEVICES"), timeout=60) == ""
    assert ray.get(other.variable.remote("DS_ACCELERATOR"), timeout=60) == "cpu"


def test_device_follows_the_reservation() -> None:
    assert [device_name(gpus) for gpus in (0, 0.3, 1, 8)] == ["cpu", "cuda", "cuda", "cuda"]
