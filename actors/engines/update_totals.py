"""What an optimizer update adds up for its metrics: over micro-batches on each rank, then over ranks."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rlad.objectives import MetricSums
from rlad.packing import BatchCounts


@dataclass(slots=True, kw_only=True, eq=False)
class UpdateTotals:
    """A share of an optimizer update's metrics, on the device that computed them.

    Attributes:
        sums: the objective's.
        loss: sum of the weighted token losses.
        gap_sum, gap_max: of |sampler's log-probability - learner's|, over trained tokens; float64 and float32.
        counts: what went into the micro-batches.
    """

    sums: MetricSums
    loss: Tensor
    gap_sum: Tensor
    gap_max: Tensor
    counts: BatchCounts
    micro_batches: int

    def add(self, other: UpdateTotals) -> None:
        self.sums = self.sums.add(other.sums)
        self.loss += other.loss
        self.gap_sum += other.gap_sum
        self.gap_max = torch.maximum(self.gap_max, other.gap_max)
        self.counts += other.counts
        self.micro_batches += other.micro_batches

    def reduced(self) -> UpdateTotals:
        """Those of all ranks together: one all-reduce. Each rank's largest gap has a slot of its own, so that a sum carries the maximum too."""
        sums, device = self.sums.to_tensor(), self.sums.values.device
        slots = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=device)
        slots[dist.get_rank()] = self.gap_max
        scalars = torch.stack([self.loss.double(), self.gap_sum])
        counts = torch.tensor([self.micro_batches, *astuple(self.counts)], dtype=torch.float64, device=device)
        sizes = [len(sums), len(scalars), len(counts), len(slots)]
        reduced = torch.cat([sums, scalars, counts, slots])
        dist.all_reduce(reduced)
        sums, scalars, counts, slots = reduced.cpu().split(sizes)
        micro_batches, *others = (int(count) for count in counts.tolist())
        return UpdateTotals(
            sums=self.sums.from_tensor(sums),
            loss=scalars[0],
            gap_sum=scalars[1],
            gap_max=slots.max(),
            counts=BatchCounts(**dict(zip(BatchCounts.__slots__, others, strict=True))),
            micro_batches=micro_batches,
        )
