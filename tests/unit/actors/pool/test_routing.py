"""Routing of work to workers."""

from __future__ import annotations

import asyncio

import pytest

from actors.pool.routing import Router, least_loaded


def test_least_loaded_worker_is_chosen() -> None:
    assert least_loaded({"a": 30, "b": 10, "c": 20}) == "b"


def test_first_of_equally_loaded_workers_is_chosen() -> None:
    assert least_loaded({"b": 5, "a": 5, "c": 9}) == "b"


def test_no_worker_is_chosen_without_workers() -> None:
    assert least_loaded({}) is None


def test_routing_by_outstanding_cost_balances_unequal_work() -> None:
    """Costs 8, 4, 4, 2, 2, 4 go to the less loaded of two workers in turn: 8 + 2 + 4 against 4 + 4 + 2."""
    outstanding = {"a": 0, "b": 0}
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for cost in (8, 4, 4, 2, 2, 4):
        worker = least_loaded(outstanding)
        assert worker is not None
        outstanding[worker] += cost
        taken[worker].append(cost)
    assert taken == {"a": [8, 2, 4], "b": [4, 4, 2]}


async def test_waiting_work_goes_to_the_first_worker_with_room() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.admit("b")
    first, second, third = (router.enqueue(8) for _ in range(3))
    assert (first.result(), second.result(), third.done()) == ("a", "b", False)
    router.release("b", 8)
    assert third.result() == "b"


async def test_idle_worker_takes_work_above_its_capacity() -> None:
    router = Router(capacity=10)
    router.admit("a")
    assert router.enqueue(25).result() == "a"
    waiting = router.enqueue(1)
    assert not waiting.done()
    router.release("a", 25)
    assert waiting.result() == "a"


async def test_waiting_work_is_served_by_priority_and_small_work_does_not_overtake() -> None:
    router = Router(capacity=10)
    router.admit("a")
    busy = router.enqueue(10)
    later, earlier, small = router.enqueue(6, priority=5), router.enqueue(6, priority=4), router.enqueue(1, priority=6)
    router.release(busy.result(), 10)
    assert (earlier.done(), later.done(), small.done()) == (True, False, False)
    router.release("a", 6)
    assert (later.done(), small.done()) == (True, True)


async def test_cancelled_request_takes_no_room() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.enqueue(10)
    cancelled, following = router.enqueue(10), router.enqueue(10)
    cancelled.cancel()
    router.release("a", 10)
    assert following.result() == "a"
    assert router.outstanding("a") == 10


async def test_removed_worker_gets_no_work_and_new_worker_gets_waiting_work() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.enqueue(10)
    waiting = router.enqueue(10)
    router.remove("a")
    router.release("a", 10)
    assert (len(router), waiting.done()) == (0, False)
    router.admit("b")
    assert waiting.result() == "b"


async def test_fail_raises_in_all_waiting_requests() -> None:
    router = Router()
    waiting = [router.enqueue(1), router.enqueue(1)]
    router.fail(RuntimeError("no worker is left"))
    for future in waiting:
        with pytest.raises(RuntimeError, match="no worker is left"):
            await asyncio.wait_for(future, 1)
