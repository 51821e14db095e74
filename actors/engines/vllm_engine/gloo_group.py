"""CPU process group with one broadcasting rank, independent of the other process groups of its members and of vLLM."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class GlooGroup:
    """Gloo process group. Rank 0 listens and broadcasts; the other ranks connect to it."""

    def __init__(self, *, address: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        """Join the group. Blocks until all ranks have joined.

        Args:
            address: Address that rank 0 listens on.
            port: Port that rank 0 listens on.
            rank: Rank of this process.
            world_size: Number of processes in the group.
            timeout_s: Timeout for joining and for each broadcast, seconds.

        Raises:
            RuntimeError: A rank did not join in time.
        """
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=True)  # type: ignore[attr-defined]
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timeout)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy rank 0's tensor into the tensors of the other ranks, of any shape common to all ranks. Collective.

        Raises:
            RuntimeError: A rank is gone, or did not take part in time.
        """
        self._group.broadcast(tensor, 0).wait()  # unlimited wait: the group's own timeout applies
