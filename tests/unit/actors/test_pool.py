from __future__ import annotations

from actors.pool import RestartBudget, least_loaded


def test_work_goes_to_the_worker_with_the_least_outstanding_cost() -> None:
    assert least_loaded({"a": 30, "b": 10, "c": 20}) == "b"


def test_among_equally_loaded_workers_the_first_gets_the_work() -> None:
    assert least_loaded({"b": 5, "a": 5, "c": 9}) == "b"


def test_without_workers_nobody_gets_the_work() -> None:
    assert least_loaded({}) is None


def test_routing_by_outstanding_cost_balances_unequal_work() -> None:
    """Costs 8, 4, 4, 2, 2, 4 given one by one to two workers: each time to the lighter one, 8 + 2 + 2 against 4 + 4 + 4."""
    outstanding = {"a": 0, "b": 0}
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for cost in (8, 4, 4, 2, 2, 4):
        worker = least_loaded(outstanding)
        assert worker is not None
        outstanding[worker] += cost
        taken[worker].append(cost)
    assert taken == {"a": [8, 2, 4], "b": [4, 4, 2]}


def test_a_restart_budget_of_two_allows_exactly_two_restarts() -> None:
    budget = RestartBudget(2)
    assert [budget.take() for _ in range(4)] == [True, True, False, False]
    assert budget.left == 0
