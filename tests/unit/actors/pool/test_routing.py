from __future__ import annotations

import asyncio

import pytest

from actors.pool.routing import Router, least_loaded


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


async def test_work_that_finds_no_room_goes_to_whoever_is_free_first() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.admit("b")
    first, second, third = (router.enqueue(8) for _ in range(3))
    assert (first.result(), second.result(), third.done()) == ("a", "b", False)
    router.release("b", 8)
    assert third.result() == "b"


async def test_an_idle_worker_takes_work_above_its_capacity() -> None:
    router = Router(capacity=10)
    router.admit("a")
    assert router.enqueue(25).result() == "a"
    waiting = router.enqueue(1)
    assert not waiting.done()
    router.release("a", 25)
    assert waiting.result() == "a"


async def test_of_those_who_wait_the_earlier_step_is_served_first_and_small_work_does_not_overtake() -> None:
    router = Router(capacity=10)
    router.admit("a")
    busy = router.enqueue(10)
    later, earlier, small = router.enqueue(6, priority=5), router.enqueue(6, priority=4), router.enqueue(1, priority=6)
    router.release(busy.result(), 10)
    assert (earlier.done(), later.done(), small.done()) == (True, False, False)
    router.release("a", 6)
    assert (later.done(), small.done()) == (True, True)


async def test_who_gave_up_waiting_takes_no_room() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.enqueue(10)
    gone, next_one = router.enqueue(10), router.enqueue(10)
    gone.cancel()
    router.release("a", 10)
    assert next_one.result() == "a"
    assert router.outstanding("a") == 10


async def test_a_removed_worker_gets_nothing_and_a_new_one_what_waits() -> None:
    router = Router(capacity=10)
    router.admit("a")
    router.enqueue(10)
    waiting = router.enqueue(10)
    router.remove("a")
    router.release("a", 10)
    assert (len(router), waiting.done()) == (0, False)
    router.admit("b")
    assert waiting.result() == "b"


async def test_when_no_worker_will_ever_come_all_who_wait_are_told() -> None:
    router = Router()
    waiting = [router.enqueue(1), router.enqueue(1)]
    router.fail(RuntimeError("none is left"))
    for future in waiting:
        with pytest.raises(RuntimeError, match="none is left"):
            await asyncio.wait_for(future, 1)
