"""Speeds of a connected cluster: Ray's object store, and NCCL between GPUs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import ray
from ray import ObjectRef

from pipelines.doctor.facts import Links

_STORE_BYTES = 256 << 20
_REDUCED_BYTES = 256 << 20
_REPEATS = 5
_TIMEOUT_S = 180.0


def measure_links(gpus: int, directory: Path) -> Links:
    """Measure the links of the connected cluster.

    Args:
        gpus: Number of GPUs of the cluster, all of them free.
        directory: Directory for the rendezvous of the processes, which all nodes must see.
    """
    speed: float | None = None
    try:
        speed = _put_speed()
        if gpus < 2:
            return Links(put_gb_s=speed, gpus=gpus)
        rendezvous = f"file://{directory / 'nccl-rendezvous'}"
        reduce = ray.remote(all_reduce_gb_s).options(num_gpus=1, num_cpus=0)
        speeds = ray.get([reduce.remote(rank, gpus, rendezvous, "nccl") for rank in range(gpus)], timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - every error is a finding
        message = next(iter(str(error).strip().splitlines()[-1:]), "")
        return Links(put_gb_s=speed, gpus=gpus, error=f"{type(error).__name__}: {message}")
    return Links(put_gb_s=speed, gpus=gpus, nccl_gb_s=min(speeds))


def _put_speed() -> float:
    data = np.ones(_STORE_BYTES, np.uint8)  # zeros would share one page
    best = 0.0
    for _ in range(2):  # the first pass allocates the pages of the store
        started = time.monotonic()
        ref: ObjectRef = ray.put(data)
        best = max(best, _STORE_BYTES / (time.monotonic() - started) / 1e9)
        del ref
    return best


def all_reduce_gb_s(rank: int, ranks: int, rendezvous: str, backend: str, num_bytes: int = _REDUCED_BYTES) -> float:
    """Return the bus bandwidth of an all-reduce in GB/s, as nccl-tests define it: 2 (n - 1) / n of the bytes each way.

    Args:
        rank: Rank of this process.
        ranks: Number of processes.
        rendezvous: Rendezvous of `torch.distributed`.
        backend: `nccl`, or `gloo` on CPU.
        num_bytes: Size of the tensor.

    Raises:
        RuntimeError: The sum is wrong, or the processes do not find each other.
    """
    import torch
    import torch.distributed as dist

    on_gpu = backend == "nccl"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=ranks)
    try:
        tensor = torch.ones(num_bytes // 4, device="cuda" if on_gpu else "cpu")
        dist.all_reduce(tensor)  # connects, and checks the sum
        if float(tensor[0]) != ranks or float(tensor[-1]) != ranks:
            raise RuntimeError(f"the all-reduce of ones over {ranks} processes gave {float(tensor[0])}")
        if on_gpu:
            torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(_REPEATS):
            dist.all_reduce(tensor)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = (time.monotonic() - started) / _REPEATS
    finally:
        dist.destroy_process_group()
    return num_bytes * max(1.0, 2 * (ranks - 1) / ranks) / seconds / 1e9
