"""Configuration of prices and of the budget of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from rlad.config.base import ConfigModel, or_null
from rlad.monitoring.cost import LimitUse, ReservedHours, RunCost

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BudgetConfig(ConfigModel):
    """Limits of the whole run over all its attempts. Reaching any of them ends the run, as `rlad stop` does."""

    gpu_hours: Limit | None = Field(None, description="Maximum GPU-hours; null means unlimited.")
    cpu_hours: Limit | None = Field(None, description="Maximum CPU-hours; null means unlimited.")
    amount: Limit | None = Field(
        None, description="Maximum amount in `cost.currency`; requires a price. null means unlimited."
    )
    warn_at: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Share of a limit at which the run warns, once."
    )

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by setting."""
        found = {"gpu_hours": self.gpu_hours, "cpu_hours": self.cpu_hours, "amount": self.amount}
        return {name: limit for name, limit in found.items() if limit is not None}


class CostConfig(ConfigModel):
    """Prices of reserved resources, and a budget. Hours are counted with and without prices."""

    price_per_gpu_hour: Price | None = Field(None, description="Price of one GPU for an hour; null means unknown.")
    pool_prices_per_gpu_hour: dict[str, Price] = Field(
        {},
        description="Prices of pools on other GPUs, which take precedence over `price_per_gpu_hour`. `rlad plan` "
        "prints the pool names.",
    )
    price_per_cpu_hour: Price | None = Field(
        None,
        description="Price of one CPU for an hour; null counts CPUs as free, which fits GPU nodes whose price includes "
        "them.",
    )
    currency: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=12)] = Field(
        "USD", description="Currency of the prices and of `budget.amount`, as a label."
    )
    budget: BudgetConfig = Field(BudgetConfig(), description="Budget of the run.")

    @model_validator(mode="after")
    def _amount_has_a_price(self) -> Self:
        if self.budget.amount is not None and not self.is_priced:
            raise ValueError(
                "cost.budget.amount requires a price; got cost.price_per_gpu_hour "
                f"{or_null(self.price_per_gpu_hour)} and cost.price_per_cpu_hour {or_null(self.price_per_cpu_hour)}. "
                "Set the price of what the run reserves, or limit cost.budget.gpu_hours"
            )
        return self

    @property
    def is_priced(self) -> bool:
        """Whether any price is known."""
        prices = (self.price_per_gpu_hour, self.price_per_cpu_hour, *self.pool_prices_per_gpu_hour.values())
        return any(price is not None for price in prices)

    def cost_of(self, hours: Mapping[str, ReservedHours]) -> RunCost:
        """Return the cost of reserved hours by pool. Without a price of its own or for all pools, a pool is free."""
        total = sum(hours.values(), start=ReservedHours())
        gpu_price, cpu_price = self.price_per_gpu_hour or 0.0, self.price_per_cpu_hour or 0.0
        amount = sum(
            each.gpu * self.pool_prices_per_gpu_hour.get(pool, gpu_price) + each.cpu * cpu_price
            for pool, each in hours.items()
        )
        return RunCost(
            gpu_hours=total.gpu,
            cpu_hours=total.cpu,
            amount=amount if self.is_priced else None,
            currency=self.currency if self.is_priced else None,
        )

    def budget_uses(self, cost: RunCost) -> dict[str, LimitUse]:
        """Return the use of each limit that is set, by setting."""
        used = {"gpu_hours": cost.gpu_hours, "cpu_hours": cost.cpu_hours, "amount": cost.amount or 0.0}
        return {name: LimitUse(used=used[name], limit=limit) for name, limit in self.budget.limits().items()}
