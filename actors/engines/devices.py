"""Device of an engine, from its configuration. A reservation of 0 GPUs means CPU, also on a machine with GPUs."""

from __future__ import annotations

import os
import resource


def hide_gpus() -> None:
    """Hide all GPUs from this process and its children. Call this before the first use of CUDA.

    Ray no longer does this for actors that reserve no GPU.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported


def device_name(gpus: float) -> str:
    """Return PyTorch's name of the device of a worker that reserves this many GPUs."""
    return "cuda" if gpus else "cpu"


def peak_memory_gib(gpus: float) -> float:
    """Return the peak memory of this process, in GiB: on its GPU if it reserves one, otherwise of the host."""
    if gpus:
        import torch  # imported late: takes seconds

        return torch.cuda.max_memory_reserved() / (1 << 30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
