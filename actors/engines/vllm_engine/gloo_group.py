"""A process group of CPUs beside whatever groups its processes are in already: one that sends tensors to all others. Knows nothing of vLLM."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class GlooGroup:
    """The sender is rank 0, and listens; the others connect. All enter and leave it in any order, but call it alike."""

    def __init__(self, *, address: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        """Wait for all.

        Args:
            address, port: where rank 0 listens.
            timeout_s: for the others to come, and of one broadcast.

        Raises:
            RuntimeError: somebody did not come.
        """
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=True)  # type: ignore[attr-defined]
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timeout)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """The sender's tensor into everybody's.

        Raises:
            RuntimeError: a process of the group is gone, or does not take part.
        """
        self._group.broadcast(tensor, 0).wait()
