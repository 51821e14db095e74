from __future__ import annotations

from actors.pool.pool import RestartBudget


def test_a_restart_budget_of_two_allows_exactly_two_restarts() -> None:
    budget = RestartBudget(2)
    assert [budget.take() for _ in range(4)] == [True, True, False, False]
    assert budget.left == 0
