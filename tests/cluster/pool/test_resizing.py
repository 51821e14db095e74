"""Growing, shrinking and draining of a pool, against a real Ray."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import ray

from actors.pool.pool import ActorPool
from rlad.errors import WorkerLostError

from .echo import Echo, FailingStart, MakePool, call, use_and_kill, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_new_workers_of_a_growing_pool_take_work_once_prepared(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    pool.resize(3)
    assert (pool.state().target, pool.state().ready, pool.state().starting) == (3, 1, 2)
    await wait_until(lambda: pool.state().ready == 3, "three workers are ready")
    async with pool.lease(1) as first, pool.lease(1) as second, pool.lease(1) as third:
        assert sorted(await asyncio.gather(*(actor.number.remote() for actor in (first, second, third)))) == [0, 1, 2]


async def test_draining_worker_finishes_its_leases_and_gets_no_more(
    make_pool: MakePool,
) -> None:
    retired: list[str] = []

    async def retire(actor: Any) -> None:
        retired.append(pool.worker_name(actor))

    pool = await make_pool(2, retire=retire)
    async with pool.lease(5) as busy:
        number = await busy.number.remote()
        pool.resize(1)
        await wait_until(lambda: pool.state().draining == 0, "the idle worker has stopped")
        assert retired == [f"echo-{1 - number}"]
        pool.resize(2)
        await wait_until(lambda: pool.state().ready == 2, "the new worker is ready")
        async with pool.lease(9) as new:  # now the first worker has the least outstanding cost and drains
            pool.resize(1)
            assert (pool.state().ready, pool.state().draining) == (1, 1)
            assert await busy.number.remote() == number
            async with pool.lease(1) as other:
                assert other == new
    await wait_until(lambda: pool.state().draining == 0, "the busy worker has stopped")
    assert retired == [f"echo-{1 - number}", f"echo-{number}"]
    with pytest.raises(ray.exceptions.RayActorError):
        await busy.number.remote()


async def test_draining_waits_for_a_for_each_call(make_pool: MakePool) -> None:
    """An engine that is shut down while it loads new weights can fail with any error."""
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
    await wait_until(lambda: len(begun) == 2, "both calls have begun")
    pool.resize(1)
    assert (pool.state().ready, pool.state().draining) == (1, 1)
    await asyncio.sleep(0)
    may_end.set()
    assert sorted(await loading) == [0, 1]
    await wait_until(lambda: pool.state().draining == 0, "one worker has stopped")
    assert len(retired) == 1


async def test_draining_worker_that_is_lost_is_not_replaced(make_pool: MakePool) -> None:
    pool = await make_pool(2)
    done = asyncio.Event()

    async def hold_longer_lease() -> None:
        async with pool.lease(9):
            await done.wait()

    async def lose_a_draining_worker() -> None:
        async with pool.lease(1) as busy:
            other = asyncio.create_task(hold_longer_lease())
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


async def test_shrinking_cancels_starting_workers_first(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    pool.resize(2)
    pool.resize(1)
    await wait_until(lambda: pool.state().starting == 0, "the start is cancelled")
    assert (pool.state().target, pool.state().ready, pool.state().draining) == (1, 1, 0)


async def test_pool_keeps_its_workers_when_new_ones_cannot_start(make_pool: MakePool) -> None:
    spawned: list[int] = []

    def spawn(number: int) -> Any:
        spawned.append(number)
        return (Echo if number == 0 else FailingStart).remote(number)

    async def prepare(actor: Any) -> None:
        await actor.__ray_ready__.remote()

    pool = await make_pool(1, spawn=spawn, prepare=prepare)
    pool.resize(3)
    await wait_until(lambda: pool.state().starting == 0, "both starts have failed")
    assert (pool.state().target, pool.state().ready) == (1, 1)
    assert spawned == [0, 1, 2]  # each is tried once and costs no restart
    async with pool.lease(1) as actor:
        assert pool.worker_name(actor) == "echo-0"


async def test_worker_lost_while_a_start_is_cancelled_is_replaced(make_pool: MakePool) -> None:
    """A cancelled start still counts as `starting` in the state, but not as a worker that is on its way."""
    is_preparing, may_end = asyncio.Event(), asyncio.Event()

    async def prepare(actor: Any) -> None:
        await actor.prepare.remote()
        if await actor.number.remote() == 1:
            is_preparing.set()
            try:
                await actor.wait.remote()
            except asyncio.CancelledError:
                await may_end.wait()
                raise

    pool = await make_pool(1, prepare=prepare)
    pool.resize(2)
    await asyncio.wait_for(is_preparing.wait(), 60)
    pool.resize(1)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    assert await call(pool, "number") == 2
    may_end.set()
    await wait_until(lambda: pool.state().starting == 0, "the start is cancelled")
    assert (pool.state().target, pool.state().ready) == (1, 1)


async def test_closed_pool_starts_no_workers(make_pool: MakePool) -> None:
    spawned: list[int] = []

    def spawn(number: int) -> Any:
        spawned.append(number)
        return Echo.remote(number)

    pool = await make_pool(1, spawn=spawn)
    await pool.close()
    pool.resize(3)
    assert (pool.state().ready, pool.state().starting, spawned) == (0, 0, [0])


async def test_pool_that_shrinks_during_its_start_starts_with_the_smaller_size() -> None:
    may_end = asyncio.Event()

    async def prepare(actor: Any) -> None:
        await actor.prepare.remote()
        await may_end.wait()

    pool = ActorPool(name="echo", size=2, spawn=Echo.remote, prepare=prepare, max_restarts=0, start_timeout_s=60.0)
    starting = asyncio.create_task(pool.start())
    await wait_until(lambda: pool.state().starting == 2, "both workers are starting")
    pool.resize(1)
    may_end.set()
    await starting
    assert (pool.state().target, pool.state().ready, pool.state().starting) == (1, 1, 0)
    await pool.close()
