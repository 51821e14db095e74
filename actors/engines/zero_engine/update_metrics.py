"""The metrics of optimizer updates: added up over micro-batches on each rank, then over ranks, then over the updates of a training step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
        """Those of all ranks together, on the CPU: one all-reduce. Each rank's largest gap has a slot of its own, so that a sum carries the maximum too."""
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateResult:
    """What one optimizer update did, over all ranks and micro-batches.

    Attributes:
        applied: false where the gradient was NaN or infinite: weights, optimizer state and schedule are as before.
        gradient_norm: before clipping; NaN or infinite where it was not applied.
        lr: learning rate.
        entropy_coefficient: of the entropy bonus.
        totals: of all ranks.
    """

    applied: bool
    gradient_norm: float
    lr: float
    entropy_coefficient: float
    totals: UpdateTotals


def step_metrics(updates: Sequence[UpdateResult]) -> dict[str, float]:
    """The metrics of a training step's updates, in their order. What has no value, such as the mean norm where no update was applied, is left out.

    `learner/logprob_gap_*` is the distance between the sampler's and the learner's log-probabilities of the same tokens under the same weights: engine
    noise. So it is taken from the first update alone; behind that the learner's weights are no longer those that sampled.
    """
    first, totals = updates[0].totals, [update.totals for update in updates]
    counts = functools.reduce(BatchCounts.__add__, (each.counts for each in totals))
    applied = [update for update in updates if update.applied]
    metrics = {
        "learner/lr": updates[-1].lr,
        "learner/entropy_coefficient": updates[-1].entropy_coefficient,
        "learner/updates": float(len(updates)),
        "learner/nonfinite_updates": float(sum(not update.applied for update in updates)),
        "learner/micro_batches": float(sum(each.micro_batches for each in totals)),
        "learner/tokens": float(counts.trained_tokens),
        "learner/missing_teacher_tokens": float(counts.missing_teacher_tokens),
        "learner/missing_reference_tokens": float(counts.missing_reference_tokens),
        "learner/missing_behaviour_tokens": float(counts.missing_behaviour_tokens),
        **functools.reduce(MetricSums.add, (each.sums for each in totals)).means(),
    }
    if applied:
        metrics["learner/loss"] = sum(float(update.totals.loss) for update in applied) / len(applied)
        metrics["learner/gradient_norm"] = sum(update.gradient_norm for update in applied) / len(applied)
    if first.counts.trained_tokens:
        metrics["learner/logprob_gap_mean"] = float(first.gap_sum) / first.counts.trained_tokens
        metrics["learner/logprob_gap_max"] = float(first.gap_max)
    return metrics
