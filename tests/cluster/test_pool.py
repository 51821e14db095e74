"""The pool against a real Ray, with actors that do nothing but can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest
import pytest_asyncio
import ray

from actors.pool.pool import ActorPool
from rlad.errors import DataError, DeadlineError, EngineError, PoolExhaustedError, WorkerLostError

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakePool = Callable[..., Awaitable[ActorPool]]


@ray.remote(num_cpus=0)
class Echo:
    """Answers, waits, fails or dies as it is told."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._prepared = False

    async def prepare(self) -> None:
        self._prepared = True

    async def number(self) -> int:
        assert self._prepared
        return self._number

    async def pid(self) -> int:
        return os.getpid()

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def fail(self) -> None:
        raise DataError("the prompt is empty")

    async def fail_otherwise(self) -> None:
        raise KeyError("no such key")

    async def lose_engine(self) -> None:
        raise WorkerLostError("the engine's process has died")


@ray.remote(num_cpus=0)
class Stillborn:
    def __init__(self, number: int) -> None:
        raise ValueError("no such model")


@pytest_asyncio.fixture(loop_scope="module")
async def make_pool() -> AsyncIterator[MakePool]:
    pools: list[ActorPool] = []

    async def make(size: int, **settings: Any) -> ActorPool:
        defaults = {
            "spawn": Echo.remote,
            "prepare": lambda actor: as_coroutine(actor.prepare.remote()),
            "max_restarts": 1,
            "start_timeout_s": 60.0,
        }
        pool = ActorPool(name="echo", size=size, **(defaults | settings))
        pools.append(pool)
        await pool.start()
        return pool

    yield make
    for pool in pools:
        await pool.close()


async def as_coroutine(ref: Any) -> Any:
    return await ref


async def kill_process(actor: Any) -> None:
    os.kill(await actor.pid.remote(), signal.SIGKILL)


async def use_and_kill(pool: ActorPool) -> None:
    """Lease a worker, kill its process, and go on using it."""
    async with pool.lease(1) as actor:
        await kill_process(actor)
        await actor.wait.remote()


async def call(pool: ActorPool, method: str) -> Any:
    async with pool.lease(1) as actor:
        return await getattr(actor, method).remote()


async def test_workers_are_prepared_before_they_are_admitted(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    assert sorted(await pool.for_each(lambda actor: actor.number.remote())) == [
        0,
        1,
    ]  # `number` asserts that it was prepared


async def test_without_a_preparation_being_up_is_enough(make_pool: MakePool) -> None:
    pool = await make_pool(1, prepare=None)
    assert len(await pool.for_each(lambda actor: actor.pid.remote())) == 1


async def test_a_lease_goes_to_the_worker_with_the_least_outstanding_cost(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    async with (
        pool.lease(10) as heavy,
        pool.lease(3) as light,
        pool.lease(3) as second_light,
        pool.lease(3) as third_light,
    ):
        assert heavy != light
        assert light == second_light == third_light
        async with pool.lease(1) as next_lightest:  # 10 against 9
            assert next_lightest == light
        async with pool.lease(2), pool.lease(1) as after:  # 10 against 11
            assert after == heavy


async def test_cost_is_given_back_when_the_block_ends_even_by_an_error(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    async with pool.lease(5) as first:
        pass
    with pytest.raises(RuntimeError, match="of the caller"):
        async with pool.lease(5) as second:
            raise RuntimeError("of the caller")
    assert first == second
    async with pool.lease(1) as third:
        assert third == first


async def test_an_error_of_ours_comes_out_of_the_lease_as_it_was_raised(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(DataError) as raised:
        await call(pool, "fail")
    assert str(raised.value) == "the prompt is empty"
    assert await call(pool, "number") == 0, "the worker did nothing wrong and stays"


async def test_any_other_error_of_the_actor_is_told_in_one_line(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(EngineError, match=r"^echo-0 failed: KeyError: 'no such key'$"):
        await call(pool, "fail_otherwise")


async def test_a_killed_worker_is_replaced_and_its_caller_told(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(WorkerLostError, match="echo-0 was lost"):
        await use_and_kill(pool)
    assert await call(pool, "number") == 1, "the replacement, prepared"


async def test_all_callers_of_a_killed_worker_are_told_but_it_is_replaced_once(make_pool: MakePool) -> None:
    pool = await make_pool(1, max_restarts=1)

    async def wait() -> None:
        async with pool.lease(1) as actor:
            await actor.wait.remote()

    callers = [asyncio.create_task(wait()) for _ in range(5)]
    async with pool.lease(1) as actor:
        await kill_process(actor)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WorkerLostError] * 5
    assert await call(pool, "number") == 1


async def test_a_worker_that_lost_its_engine_is_replaced_though_its_process_lives(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    process = psutil.Process(await call(pool, "pid"))
    with pytest.raises(WorkerLostError, match=r"echo-0 was lost: .*the engine's process has died"):
        await call(pool, "lose_engine")
    assert await call(pool, "number") == 1
    await asyncio.to_thread(process.wait, 30)  # killed by the pool: it must not go on beside its replacement


async def test_the_other_workers_go_on_when_the_budget_is_spent(make_pool: MakePool) -> None:
    pool = await make_pool(2, max_restarts=0)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    survivors = await pool.for_each(lambda actor: actor.number.remote())
    assert len(survivors) == 1
    assert await call(pool, "number") == survivors[0]


async def test_losing_the_last_worker_with_the_budget_spent_exhausts_the_pool(make_pool: MakePool) -> None:
    pool = await make_pool(1, max_restarts=1)
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            await use_and_kill(pool)
    with pytest.raises(
        PoolExhaustedError,
        match=r"no echo worker is left and the restart budget is spent; the last one failed because: .*exit",
    ):
        await call(pool, "number")
    with pytest.raises(PoolExhaustedError):
        await pool.for_each(lambda actor: actor.number.remote())


async def test_a_replacement_that_fails_to_prepare_is_tried_again_within_the_budget(make_pool: MakePool) -> None:
    attempts: list[int] = []

    async def prepare(actor: Any) -> None:
        await actor.prepare.remote()
        attempts.append(await actor.number.remote())
        if attempts[-1] == 1:
            raise EngineError("out of memory")

    pool = await make_pool(1, prepare=prepare, max_restarts=2)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    assert await call(pool, "number") == 2
    assert attempts == [0, 1, 2]


async def test_for_each_leaves_out_a_worker_that_dies_meanwhile_and_replaces_it(make_pool: MakePool) -> None:
    replacement_is_prepared = asyncio.Event()

    async def prepare(actor: Any) -> None:
        await actor.prepare.remote()
        if await actor.number.remote() == 2:
            replacement_is_prepared.set()

    async def die_if_first(actor: Any) -> int:
        number = int(await actor.number.remote())
        if number == 0:
            await kill_process(actor)
            await actor.wait.remote()
        return number

    pool = await make_pool(2, prepare=prepare)
    assert await pool.for_each(die_if_first) == [1]
    await asyncio.wait_for(replacement_is_prepared.wait(), 60)
    assert sorted(await pool.for_each(lambda actor: actor.number.remote())) == [1, 2]


async def test_for_each_raises_what_a_call_raised(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    with pytest.raises(DataError, match="the prompt is empty"):
        await pool.for_each(lambda actor: actor.fail.remote())


async def test_a_worker_that_cannot_start_fails_the_pool_with_its_reason(make_pool: MakePool) -> None:
    with pytest.raises(
        PoolExhaustedError,
        match=r"echo pool did not start, 2 of 2 workers failed: echo-0 did not start: ValueError: no such model; echo-1",
    ):
        await make_pool(2, spawn=Stillborn.remote, prepare=None)


async def test_a_worker_that_is_too_slow_fails_the_pool_by_its_deadline(make_pool: MakePool) -> None:
    with pytest.raises(DeadlineError, match=r"1 of 1 workers failed: echo-0 was not ready within 1.5 s"):
        await make_pool(1, prepare=lambda actor: as_coroutine(actor.wait.remote()), start_timeout_s=1.5)


async def test_waiting_for_a_replacement_ends_at_the_deadline(make_pool: MakePool) -> None:
    async def prepare(actor: Any) -> None:
        if await actor.__ray_call__.remote(lambda echo: echo._number) > 0:
            await actor.wait.remote()
        await actor.prepare.remote()

    pool = await make_pool(1, prepare=prepare, start_timeout_s=5.0, max_restarts=5)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    with pytest.raises(DeadlineError, match="no echo worker was ready within 5 s"):
        await call(pool, "number")


async def test_closing_kills_every_worker_and_refuses_further_work(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    processes = [psutil.Process(pid) for pid in await pool.for_each(lambda actor: actor.pid.remote())]
    await pool.close()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
    assert not alive
    with pytest.raises(PoolExhaustedError, match="closed"):
        await call(pool, "number")


async def until(claim: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(60):
        while not claim():
            await asyncio.sleep(0.02)
    assert claim(), what


async def test_a_pool_that_grows_gives_work_to_the_new_workers_once_they_are_prepared(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    pool.resize(3)
    assert (pool.state().target, pool.state().ready, pool.state().starting) == (3, 1, 2)
    await until(lambda: pool.state().ready == 3, "three workers")
    async with pool.lease(1) as first, pool.lease(1) as second, pool.lease(1) as third:
        assert sorted(await asyncio.gather(*(actor.number.remote() for actor in (first, second, third)))) == [0, 1, 2]


async def test_a_pool_that_shrinks_lets_a_worker_finish_what_it_has_and_gives_it_nothing_more(
    make_pool: MakePool,
) -> None:
    retired: list[str] = []

    async def retire(actor: Any) -> None:
        retired.append(pool.worker_name(actor))

    pool = await make_pool(2, retire=retire)
    async with pool.lease(5) as busy:
        number = await busy.number.remote()
        pool.resize(1)
        await until(lambda: pool.state().draining == 0, "the idle one has gone")
        assert retired == [f"echo-{1 - number}"]
        pool.resize(2)
        await until(lambda: pool.state().ready == 2, "a new one is there")
        async with pool.lease(9) as new:  # it has more to do now, so the first has the least and goes
            pool.resize(1)
            assert (pool.state().ready, pool.state().draining) == (1, 1)
            assert await busy.number.remote() == number
            async with pool.lease(1) as other:
                assert other == new
    await until(lambda: pool.state().draining == 0, "the busy one has gone")
    assert retired == [f"echo-{1 - number}", f"echo-{number}"]
    with pytest.raises(ray.exceptions.RayActorError):
        await busy.number.remote()


async def test_a_worker_that_is_told_to_go_in_the_middle_of_a_call_to_all_goes_behind_it(make_pool: MakePool) -> None:
    """As with new weights: an engine that is shut down while it loads them may fail with anything."""
    retired: list[str] = []

    async def retire(actor: Any) -> None:
        retired.append(pool.worker_name(actor))

    pool = await make_pool(2, retire=retire)
    begun, may_end = [], asyncio.Event()

    async def load(actor: Any) -> int:
        begun.append(actor)
        await may_end.wait()
        assert retired == []
        return int(await actor.number.remote())

    loading = asyncio.create_task(pool.for_each(load))
    await until(lambda: len(begun) == 2, "both have begun")
    pool.resize(1)
    assert (pool.state().ready, pool.state().draining) == (1, 1)
    await asyncio.sleep(0)
    may_end.set()
    assert sorted(await loading) == [0, 1]
    await until(lambda: pool.state().draining == 0, "one has gone")
    assert len(retired) == 1


async def test_a_worker_lost_while_it_drains_is_not_replaced(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    done = asyncio.Event()

    async def have_more_to_do() -> None:
        async with pool.lease(9):
            await done.wait()

    async def lose_a_draining_worker() -> None:
        async with pool.lease(1) as busy:
            other = asyncio.create_task(have_more_to_do())
            pid = await busy.pid.remote()
            pool.resize(1)
            assert pool.state().draining == 1
            os.kill(pid, signal.SIGKILL)
            try:
                await busy.number.remote()
            finally:
                done.set()
                await other

    with pytest.raises(WorkerLostError):
        await lose_a_draining_worker()
    state = pool.state()
    assert (state.target, state.ready, state.starting, state.draining) == (1, 1, 0, 0)


async def test_a_worker_that_is_still_starting_is_the_first_to_be_given_up(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    pool.resize(2)
    pool.resize(1)
    await until(lambda: pool.state().starting == 0, "the start is given up")
    assert (pool.state().target, pool.state().ready, pool.state().draining) == (1, 1, 0)


async def test_a_pool_goes_on_with_what_there_is_when_new_workers_cannot_start(make_pool: MakePool) -> None:
    spawned: list[int] = []

    def spawn(number: int) -> Any:
        spawned.append(number)
        return (Echo if number == 0 else Stillborn).remote(number)

    async def prepare(actor: Any) -> None:
        await actor.__ray_ready__.remote()

    pool = await make_pool(1, spawn=spawn, prepare=prepare)
    pool.resize(3)
    await until(lambda: pool.state().starting == 0, "both have failed")
    assert (pool.state().target, pool.state().ready) == (1, 1)
    assert spawned == [0, 1, 2]  # each is tried once, and takes nothing of the budget for lost workers
    async with pool.lease(1) as actor:
        assert pool.worker_name(actor) == "echo-0"
