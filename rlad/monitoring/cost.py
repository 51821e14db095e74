"""Cost of runs: reserved GPU-hours and CPU-hours, and the amount of money at given prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Hours and amounts below this are shown with two significant digits.
_SMALL = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservedHours:
    """Reserved hours of a pool.

    Attributes:
        gpu: GPU-hours.
        cpu: CPU-hours.
    """

    gpu: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: ReservedHours) -> ReservedHours:
        return ReservedHours(gpu=self.gpu + other.gpu, cpu=self.cpu + other.cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Cost of a run over all its attempts.

    Attributes:
        gpu_hours: GPU-hours of all pools.
        cpu_hours: CPU-hours of all pools.
        amount: Amount of money; None without a price.
        currency: Currency of the amount; None without a price.
    """

    gpu_hours: float
    cpu_hours: float
    amount: float | None = None
    currency: str | None = None

    @property
    def parts(self) -> list[str]:
        """Hours and amount as text. GPU-hours are left out for runs without GPUs, the amount without a price."""
        return _parts(self.gpu_hours, self.cpu_hours, total_cost([self]).amounts)

    def __str__(self) -> str:
        return ", ".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """Use of one limit of a budget.

    Attributes:
        used: Used hours or amount.
        limit: The limit, positive.
    """

    used: float
    limit: float

    @property
    def share(self) -> float:
        """Used share, 1 at the limit."""
        return self.used / self.limit

    def __str__(self) -> str:
        return f"{shown(self.used)} of {shown(self.limit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalCost:
    """Cost of several runs.

    Attributes:
        runs: Number of runs with a recorded cost.
        gpu_hours: GPU-hours of these runs.
        cpu_hours: CPU-hours of these runs.
        amounts: Sum of the amounts by currency.
        unpriced_runs: Number of these runs without a price, which are in no amount.
    """

    runs: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    amounts: Mapping[str, float] = field(default_factory=dict)
    unpriced_runs: int = 0

    def __str__(self) -> str:
        unpriced = f" ({self.unpriced_runs} without a price)" if self.amounts and self.unpriced_runs else ""
        return ", ".join(_parts(self.gpu_hours, self.cpu_hours, self.amounts)) + unpriced


def total_cost(costs: Iterable[RunCost]) -> TotalCost:
    """Return the sum of costs. Amounts of different currencies are not added to each other."""
    found = list(costs)
    amounts: dict[str, float] = {}
    for cost in found:
        if cost.amount is not None and cost.currency is not None:
            amounts[cost.currency] = amounts.get(cost.currency, 0.0) + cost.amount
    return TotalCost(
        runs=len(found),
        gpu_hours=sum(cost.gpu_hours for cost in found),
        cpu_hours=sum(cost.cpu_hours for cost in found),
        amounts=amounts,
        unpriced_runs=sum(cost.amount is None for cost in found),
    )


def shown(value: float) -> str:
    """Return hours or an amount with two decimals, or with two significant digits if it is small."""
    return f"{value:,.2f}" if abs(value) >= _SMALL or value == 0 else f"{value:.2g}"


def _parts(gpu_hours: float, cpu_hours: float, amounts: Mapping[str, float]) -> list[str]:
    gpus = [f"{shown(gpu_hours)} GPU-hours"] if gpu_hours else []
    money = [f"{shown(amount)} {currency}" for currency, amount in amounts.items()]
    return [*gpus, f"{shown(cpu_hours)} CPU-hours", *money]
