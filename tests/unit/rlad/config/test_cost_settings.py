"""Prices and budgets: amounts by hand, and errors that name a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from rlad.config.load import validated
from rlad.config.monitoring.cost import CostConfig
from rlad.errors import ConfigError
from rlad.monitoring.cost import ReservedHours, RunCost, TotalCost, total_cost

HOURS = {"rollout": ReservedHours(gpu=10, cpu=20), "learner": ReservedHours(gpu=4, cpu=8)}


def test_hours_have_no_amount_without_a_price() -> None:
    cost = CostConfig().cost_of(HOURS)
    assert cost == RunCost(gpu_hours=14, cpu_hours=28, amount=None, currency=None)
    assert str(cost) == "14.00 GPU-hours, 28.00 CPU-hours"


def test_amount_by_hand_with_a_price_of_a_pool() -> None:
    settings = CostConfig(
        price_per_gpu_hour=2.5, pool_prices_per_gpu_hour={"rollout": 1.0}, price_per_cpu_hour=0.05, currency="EUR"
    )
    cost = settings.cost_of(HOURS)
    assert cost.amount == pytest.approx(10 * 1.0 + 4 * 2.5 + 28 * 0.05)
    assert str(cost) == "14.00 GPU-hours, 28.00 CPU-hours, 21.40 EUR"


def test_a_price_of_zero_is_a_price() -> None:
    assert CostConfig(price_per_gpu_hour=0).cost_of(HOURS).amount == 0


def test_small_costs_keep_two_digits_and_runs_without_gpus_show_none() -> None:
    assert str(RunCost(gpu_hours=0, cpu_hours=0.0456)) == "0.046 CPU-hours"


def test_shares_of_the_limits_by_hand() -> None:
    settings = CostConfig(price_per_gpu_hour=2, budget={"gpu_hours": 28, "amount": 56})  # type: ignore[arg-type]
    uses = settings.budget_uses(settings.cost_of(HOURS))
    assert {name: use.share for name, use in uses.items()} == {"gpu_hours": 0.5, "amount": 0.5}
    assert str(uses["amount"]) == "28.00 of 56.00"


def test_amounts_of_different_currencies_are_not_added() -> None:
    total = total_cost(
        [
            RunCost(gpu_hours=1, cpu_hours=1, amount=2, currency="USD"),
            RunCost(gpu_hours=2, cpu_hours=1, amount=3, currency="USD"),
            RunCost(gpu_hours=4, cpu_hours=1, amount=5, currency="EUR"),
            RunCost(gpu_hours=8, cpu_hours=1),
        ]
    )
    assert total == TotalCost(runs=4, gpu_hours=15, cpu_hours=4, amounts={"USD": 5, "EUR": 5}, unpriced_runs=1)
    assert str(total) == "15.00 GPU-hours, 4.00 CPU-hours, 5.00 USD, 5.00 EUR (1 without a price)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {"amount": 5}}, "requires a price.*Set the price of what the run reserves"),
        ({"budget": {"gpu_hours": 0}}, "greater than 0"),
        ({"budget": {"cpu_hours": float("inf")}}, "finite"),
        ({"price_per_gpu_hour": -1}, "greater than or equal to 0"),
        ({"price_per_gpu_hour": float("nan")}, "finite"),
        ({"currency": "[bold]"}, "currency"),
        ({"budget": {"warn_at": 1.5}}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(CostConfig, settings, where="cost")
