"""Metrics of optimizer updates, summed over micro-batches, then over ranks, then over the updates of a step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rlad.objectives import MetricSums
from rlad.packing import BatchCounts

_BY_PASS = (
    "objective/clip_fraction",
    "objective/ratio_mean",
    "objective/log_ratio_behaviour_abs_mean",
    "learner/gradient_norm",
)


@dataclass(slots=True, kw_only=True, eq=False)
class UpdateTotals:
    """Partial metrics of one optimizer update, on the device that computed them.

    Attributes:
        sums: Metric sums of the objective.
        loss: Sum of the weighted token losses, scalar.
        gap_sum: Sum of |log-probability of the sampler - log-probability of the learner| over trained tokens, float64
            scalar.
        gap_max: Maximum of the same, float32 scalar.
        counts: Token counts of the micro-batches.
        micro_batches: Number of micro-batches.
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
        """Return the totals over all ranks, on the CPU. Collective.

        Uses a single all-reduce. Each rank has its own slot for its largest gap, so the sum preserves the maxima.
        """
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
    """Result of one optimizer update, over all ranks and micro-batches.

    Attributes:
        applied: False if the gradient was NaN or infinite. Weights, optimizer state and schedule are then unchanged.
        gradient_norm: Global gradient norm before clipping. NaN or infinite if the update was not applied.
        lr: Learning rate.
        entropy_coefficient: Coefficient of the entropy bonus.
        totals: Totals over all ranks.
    """

    applied: bool
    gradient_norm: float
    lr: float
    entropy_coefficient: float
    totals: UpdateTotals


def learner_metrics(updates: Sequence[UpdateResult], *, passes: int = 1) -> dict[str, float]:
    """Return the learner's metrics of one step. Metrics without a value, such as the norm of no update, are left out.

    `learner/logprob_gap_*` measures engine noise: the difference between the log-probabilities of sampler and learner
    for the same tokens and weights. It is taken from the first update only, since after that the learner's weights
    differ from those that sampled the tokens.

    With several passes, `*_pass_N` are means over the updates of pass N, and the other metrics cover all passes: a
    token counts once per pass in `learner/tokens`.

    Args:
        updates: Updates of the step, in order, at least one.
        passes: Passes over the batch, with equally many updates each.
    """
    first, totals = updates[0].totals, [update.totals for update in updates]
    counts = functools.reduce(BatchCounts.__add__, (total.counts for total in totals))
    applied = [update for update in updates if update.applied]
    metrics = {
        "learner/lr": updates[-1].lr,
        "learner/entropy_coefficient": updates[-1].entropy_coefficient,
        "learner/updates": float(len(updates)),
        "learner/nonfinite_updates": float(sum(not update.applied for update in updates)),
        "learner/micro_batches": float(sum(total.micro_batches for total in totals)),
        "learner/tokens": float(counts.trained_tokens),
        "learner/missing_teacher_tokens": float(counts.missing_teacher_tokens),
        "learner/missing_reference_tokens": float(counts.missing_reference_tokens),
        "learner/missing_behaviour_tokens": float(counts.missing_behaviour_tokens),
        **functools.reduce(MetricSums.add, (total.sums for total in totals)).means(),
    }
    if applied:
        metrics["learner/loss"] = sum(float(update.totals.loss) for update in applied) / len(applied)
        metrics["learner/gradient_norm"] = sum(update.gradient_norm for update in applied) / len(applied)
    if first.counts.trained_tokens:
        metrics["learner/logprob_gap_mean"] = float(first.gap_sum) / first.counts.trained_tokens
        metrics["learner/logprob_gap_max"] = float(first.gap_max)
    return metrics | (_pass_metrics(updates, passes) if passes > 1 else {})


def _pass_metrics(updates: Sequence[UpdateResult], passes: int) -> dict[str, float]:
    """Return the metrics that show what a further pass adds, by pass."""
    metrics: dict[str, float] = {}
    size = len(updates) // passes
    for number in range(passes):
        own = updates[number * size : (number + 1) * size]
        means = functools.reduce(MetricSums.add, (update.totals.sums for update in own)).means()
        applied = [update.gradient_norm for update in own if update.applied]
        if applied:
            means["learner/gradient_norm"] = sum(applied) / len(applied)
        metrics |= {f"{name}_pass_{number + 1}": means[name] for name in _BY_PASS if name in means}
    return metrics
