"""Metrics that add up across micro-batches and ranks as sums and counts, and become means at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlad.errors import ContractError


class MeanSums(NamedTuple):
    """Numerator and denominator of a mean over tokens: sum and number of tokens, both scalar tensors."""

    total: Tensor
    num_tokens: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetricSums:
    """Metric sums over some of a step's tokens.

    The sums of two disjoint sets of tokens add up. The objective fixes the names and their order, so ranks can reduce
    `to_tensor()` by a sum.

    Attributes:
        mean_names: Names of metrics that are means over tokens.
        total_names: Names of metrics that are counts.
        values: Sums of the means, then their token counts, then the totals, float64 [2 * means + totals].
    """

    mean_names: tuple[str, ...]
    total_names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, *, means: Mapping[str, MeanSums], totals: Mapping[str, Tensor]) -> MetricSums:
        """Build sums from scalars on one device, without synchronizing with it."""
        columns = [
            *(mean.total for mean in means.values()),
            *(mean.num_tokens for mean in means.values()),
            *totals.values(),
        ]
        values = torch.stack([column.detach().double() for column in columns])
        return cls(mean_names=tuple(means), total_names=tuple(totals), values=values)

    def add(self, other: MetricSums) -> MetricSums:
        """Return the sums over both sets of tokens.

        Raises:
            ContractError: The two belong to different objectives.
        """
        if (self.mean_names, self.total_names) != (other.mean_names, other.total_names):
            raise ContractError(
                "MetricSums: expected the same names in the same order to add, "
                f"{self.mean_names + self.total_names}; got {other.mean_names + other.total_names}"
            )
        return self.from_tensor(self.values + other.values)

    def to_tensor(self) -> Tensor:
        """Return a copy of `values`, float64 [2 * means + totals], for an in-place all-reduce."""
        return self.values.clone()

    def from_tensor(self, values: Tensor) -> MetricSums:
        """Return the same metrics with other values, such as the reduced `to_tensor()`.

        Raises:
            ContractError: The shape differs from that of `values`.
        """
        if values.shape != self.values.shape:
            raise ContractError(f"MetricSums: expected {len(self.values)} values, got shape {list(values.shape)}")
        return MetricSums(mean_names=self.mean_names, total_names=self.total_names, values=values)

    def means(self) -> dict[str, float]:
        """Return the metrics by name. Synchronizes with the device.

        A mean over zero tokens is undefined and therefore omitted.
        """
        values: list[float] = self.values.tolist()
        size = len(self.mean_names)
        sums, counts, totals = values[:size], values[size : 2 * size], values[2 * size :]
        means = {
            name: total / count for name, total, count in zip(self.mean_names, sums, counts, strict=True) if count > 0
        }
        return means | dict(zip(self.total_names, totals, strict=True))


@torch.no_grad()
def mean_over(values: Tensor, selection: Tensor) -> MeanSums:
    """Return the float64 sum and the number of the selected values."""
    return MeanSums(values.where(selection, 0).sum(dtype=torch.float64), selection.sum())
