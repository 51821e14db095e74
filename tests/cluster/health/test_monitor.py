"""Monitor of a run's processes, against a real Ray whose processes are stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from ray.exceptions import RayActorError

from actors.health.monitor import HeartbeatMonitor
from actors.pool.pool import ActorPool
from rlad.errors import WorkerLostError

from .sleeper import Sleeper

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEARTBEAT_S = 0.3
MISSED = 3


@pytest_asyncio.fixture(loop_scope="module")
async def monitor() -> AsyncIterator[HeartbeatMonitor]:
    monitor = HeartbeatMonitor("run-of-sleepers", heartbeat_s=HEARTBEAT_S, missed_heartbeats=MISSED)
    async with monitor.running():
        yield monitor


async def open_pool(monitor: HeartbeatMonitor, *, has_engine: bool = False) -> ActorPool:
    pool = ActorPool(
        name="sleeper",
        size=1,
        spawn=Sleeper.remote,
        prepare=None,
        max_restarts=1,
        start_timeout_s=60.0,
        monitor=monitor,
        has_engine=has_engine,
    )
    await pool.start()
    return pool


async def call(pool: ActorPool, method: str, *arguments: Any) -> Any:
    async with pool.lease(1) as actor:
        return await getattr(actor, method).remote(*arguments)


async def ended(pid: int) -> float:
    """Wait for the end of a process. Return the seconds that it took."""
    began = time.monotonic()
    await asyncio.to_thread(psutil.wait_procs, [psutil.Process(pid)], 30)
    return time.monotonic() - began


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_stopped_worker_is_killed_within_three_heartbeats_and_replaced(monitor: HeartbeatMonitor) -> None:
    pool = await open_pool(monitor)
    pid, child = await call(pool, "pids")
    in_flight = asyncio.create_task(call(pool, "wait"))
    while pool.state().ready != 1 or in_flight.done():
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGSTOP)
    # The slack is for a loaded machine; deadlines of calls are minutes.
    assert await ended(pid) < MISSED * HEARTBEAT_S + 5
    assert has_ended(child), "the children of a stopped process end with it"
    with pytest.raises(WorkerLostError, match=r"sleeper-0 was lost"):
        await in_flight
    assert await call(pool, "number") == 1
    [health] = monitor.health()
    assert (health.name, health.state, health.restarts) == ("sleeper-1", "alive", 1)
    await pool.close()
    assert monitor.health() == ()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_idle_lost_worker_is_replaced_before_it_gets_work(
    monitor: HeartbeatMonitor, number: signal.Signals
) -> None:
    pool = await open_pool(monitor)
    pid, _ = await call(pool, "pids")
    os.kill(pid, number)
    async with asyncio.timeout(60):
        while "sleeper-1" not in pool.workers():
            await asyncio.sleep(HEARTBEAT_S / 4)
    assert await call(pool, "number") == 1, "no call was lost"
    await pool.close()


async def test_worker_that_holds_the_interpreter_lock_is_not_killed(monitor: HeartbeatMonitor) -> None:
    pool = await open_pool(monitor)
    pid, _ = await call(pool, "pids")
    busy_s = 2
    assert busy_s > 2 * MISSED * HEARTBEAT_S
    assert await call(pool, "hold_interpreter_lock", busy_s) == pid
    [health] = monitor.health()
    assert (health.state, health.restarts) == ("alive", 0)
    await pool.close()


async def test_worker_whose_engine_process_was_stopped_is_replaced(monitor: HeartbeatMonitor) -> None:
    pool = await open_pool(monitor, has_engine=True)
    pid, engine = await call(pool, "pids")
    os.kill(engine, signal.SIGSTOP)
    await ended(pid)
    assert has_ended(engine)
    assert await call(pool, "number") == 1
    await pool.close()


async def test_announced_process_is_watched_and_its_successor_has_one_restart(monitor: HeartbeatMonitor) -> None:
    async with asyncio.timeout(60):
        for restarts in range(2):
            rank = Sleeper.remote()
            pid = await rank.announce.remote("run-of-sleepers")
            while [(each.name, each.restarts) for each in monitor.health()] != [("rank-0", restarts)]:
                await asyncio.sleep(HEARTBEAT_S / 4)
            in_flight = rank.wait.remote()
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(RayActorError):
                await in_flight
    assert monitor.health() == ()
