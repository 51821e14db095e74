"""Loss and replacement of workers, against a real Ray whose processes are killed."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from rlad.errors import DeadlineError, EngineError, PoolExhaustedError, WorkerLostError

from .echo import MakePool, call, kill_process, use_and_kill

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_killed_worker_is_replaced_and_its_caller_gets_worker_lost(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    with pytest.raises(WorkerLostError, match="echo-0 was lost"):
        await use_and_kill(pool)
    assert await call(pool, "number") == 1, "the replacement is prepared"


async def test_all_callers_of_a_killed_worker_get_worker_lost_and_it_is_replaced_once(make_pool: MakePool) -> None:
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


async def test_worker_that_lost_its_engine_is_killed_and_replaced(make_pool: MakePool) -> None:
    pool = await make_pool(1)
    process = psutil.Process(await call(pool, "pid"))
    with pytest.raises(WorkerLostError, match=r"echo-0 was lost: .*the engine's process has died"):
        await call(pool, "lose_engine")
    assert await call(pool, "number") == 1
    await asyncio.to_thread(process.wait, 30)  # killed by the pool


async def test_other_workers_keep_working_when_the_restart_budget_is_spent(make_pool: MakePool) -> None:
    pool = await make_pool(2, max_restarts=0)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    survivors = await pool.for_each(lambda actor: actor.number.remote())
    assert len(survivors) == 1
    assert await call(pool, "number") == survivors[0]


async def test_losing_the_last_worker_without_restart_budget_exhausts_the_pool(make_pool: MakePool) -> None:
    pool = await make_pool(1, max_restarts=1)
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            await use_and_kill(pool)
    with pytest.raises(
        PoolExhaustedError,
        match=r"no echo worker is left and the restart budget is spent; last failure: .*exit",
    ):
        await call(pool, "number")
    with pytest.raises(PoolExhaustedError):
        await pool.for_each(lambda actor: actor.number.remote())


async def test_replacement_that_fails_to_prepare_is_retried_within_the_budget(make_pool: MakePool) -> None:
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


async def test_for_each_omits_and_replaces_a_worker_that_dies_during_the_call(make_pool: MakePool) -> None:
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


async def test_waiting_for_a_replacement_ends_at_the_start_deadline(make_pool: MakePool) -> None:
    async def prepare(actor: Any) -> None:
        if await actor.__ray_call__.remote(lambda echo: echo._number) > 0:
            await actor.wait.remote()
        await actor.prepare.remote()

    pool = await make_pool(1, prepare=prepare, start_timeout_s=5.0, max_restarts=5)
    with pytest.raises(WorkerLostError):
        await use_and_kill(pool)
    with pytest.raises(DeadlineError, match="no echo worker was ready within 5 s"):
        await call(pool, "number")
