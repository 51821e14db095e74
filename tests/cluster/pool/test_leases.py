"""Leases and calls to all workers of a pool, against a real Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from actors.pool.pool import ActorPool
from rlad.errors import DataError, DeadlineError, EngineError, PoolExhaustedError

from .echo import Echo, FailingStart, MakePool, as_coroutine, call, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_workers_are_prepared_before_they_are_ready(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    # `number` asserts that the actor was prepared.
    assert sorted(await pool.for_each(lambda actor: actor.number.remote())) == [0, 1]


async def test_without_prepare_a_worker_is_ready_when_it_is_up(make_pool: MakePool) -> None:
    pool = await make_pool(1, prepare=None)
    assert len(await pool.for_each(lambda actor: actor.pid.remote())) == 1


async def test_lease_goes_to_the_worker_with_the_least_outstanding_cost(make_pool: MakePool) -> None:
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


async def test_cost_is_released_when_the_block_ends_or_raises(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    async with pool.lease(5) as first:
        pass
    with pytest.raises(RuntimeError, match="of the caller"):
        async with pool.lease(5) as second:
            raise RuntimeError("of the caller")
    assert first == second
    async with pool.lease(1) as third:
        assert third == first


async def test_project_error_leaves_the_lease_unchanged(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(DataError) as raised:
        await call(pool, "fail")
    assert str(raised.value) == "the prompt is empty"
    assert await call(pool, "number") == 0, "the worker stays in the pool"


async def test_other_error_of_the_actor_becomes_a_one_line_engine_error(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(EngineError, match=r"^echo-0 failed: KeyError: 'no such key'$"):
        await call(pool, "fail_otherwise")


async def test_for_each_raises_the_error_of_a_call(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    with pytest.raises(DataError, match="the prompt is empty"):
        await pool.for_each(lambda actor: actor.fail.remote())


async def test_pool_start_fails_with_the_reason_of_each_failed_worker(make_pool: MakePool) -> None:
    with pytest.raises(
        PoolExhaustedError,
        match=r"echo pool did not start, 2 of 2 workers failed: echo-0 did not start: ValueError: no such model; echo",
    ):
        await make_pool(2, spawn=FailingStart.remote, prepare=None)


async def test_pool_start_fails_when_a_worker_exceeds_the_start_deadline(make_pool: MakePool) -> None:
    with pytest.raises(DeadlineError, match=r"1 of 1 workers failed: echo-0 was not ready within 1.5 s"):
        await make_pool(1, prepare=lambda actor: as_coroutine(actor.wait.remote()), start_timeout_s=1.5)


async def test_close_kills_every_worker_and_rejects_further_work(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    processes = [psutil.Process(pid) for pid in await pool.for_each(lambda actor: actor.pid.remote())]
    await pool.close()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
    assert not alive
    with pytest.raises(PoolExhaustedError, match="closed"):
        await call(pool, "number")


async def test_pool_closed_during_its_start_raises_and_kills_its_workers() -> None:
    processes: list[psutil.Process] = []

    async def prepare(actor: Any) -> None:
        processes.append(psutil.Process(await actor.pid.remote()))
        await actor.wait.remote()

    pool = ActorPool(name="echo", size=1, spawn=Echo.remote, prepare=prepare, max_restarts=1, start_timeout_s=60.0)
    starting = asyncio.create_task(pool.start())
    await wait_until(lambda: len(processes) == 1, "the actor is up")
    await pool.close()
    with pytest.raises(PoolExhaustedError, match="closed"):
        await starting
    await asyncio.to_thread(processes[0].wait, 30)
