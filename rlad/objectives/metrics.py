"""Metrics that add up across micro-batches and ranks: sums and counts, turned into means at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlad.errors import ContractError


class MeanSums(NamedTuple):
    """A mean not yet taken: the sum over some tokens, and their number. Scalars."""

    total: Tensor
    num_tokens: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetricSums:
    """Metrics of any share of a step's tokens.

    Two of them with the same names add up to those of both shares. The names and their order are fixed by the objective, so ranks can reduce
    `to_tensor()` by a sum.

    Attributes:
        mean_names: metrics that are means over tokens.
        total_names: metrics that are plain counts.
        values: float64 [2 * means + totals]: the sums, their counts, then the totals.
    """

    mean_names: tuple[str, ...]
    total_names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, *, means: Mapping[str, MeanSums], totals: Mapping[str, Tensor]) -> MetricSums:
        """From scalars on one device, without waiting for it."""
        columns = [
            *(mean.total for mean in means.values()),
            *(mean.num_tokens for mean in means.values()),
            *totals.values(),
        ]
        values = torch.stack([column.detach().double() for column in columns])
        return cls(mean_names=tuple(means), total_names=tuple(totals), values=values)

    def add(self, other: MetricSums) -> MetricSums:
        """The metrics of both shares together.

        Raises:
            ContractError: the two are of different objectives.
        """
        if (self.mean_names, self.total_names) != (other.mean_names, other.total_names):
            raise ContractError(
                f"MetricSums: cannot add {other.mean_names + other.total_names} to {self.mean_names + self.total_names}: names and order differ"
            )
        return self.from_tensor(self.values + other.values)

    def to_tensor(self) -> Tensor:
        """A float64 copy [2 * means + totals], ready for an all-reduce in place."""
        return self.values.clone()

    def from_tensor(self, values: Tensor) -> MetricSums:
        """The same metrics with other values, such as the reduced `to_tensor()`.

        Raises:
            ContractError: wrong shape.
        """
        if values.shape != self.values.shape:
            raise ContractError(f"MetricSums: expected {len(self.values)} values, got shape {list(values.shape)}")
        return MetricSums(mean_names=self.mean_names, total_names=self.total_names, values=values)

    def means(self) -> dict[str, float]:
        """The metrics by name. Waits for the device. A mean over no token is left out: it has no value, and 0 would be a claim."""
        values: list[float] = self.values.tolist()
        size = len(self.mean_names)
        sums, counts, totals = values[:size], values[size : 2 * size], values[2 * size :]
        means = {
            name: total / count for name, total, count in zip(self.mean_names, sums, counts, strict=True) if count > 0
        }
        return means | dict(zip(self.total_names, totals, strict=True))


@torch.no_grad()
def mean_over(values: Tensor, selection: Tensor) -> MeanSums:
    """Sum (in float64) and number of the selected values."""
    return MeanSums(values.where(selection, 0).sum(dtype=torch.float64), selection.sum())
