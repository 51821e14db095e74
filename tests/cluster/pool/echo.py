"""Actors for the pool tests, and helpers to call and kill them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from actors.pool.pool import ActorPool
from rlad.errors import DataError, WorkerLostError

MakePool = Callable[..., Awaitable[ActorPool]]


@ray.remote(num_cpus=0)
class Echo:
    """Actor that answers, waits or fails on request."""

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
class FailingStart:
    """Actor whose constructor fails."""

    def __init__(self, number: int) -> None:
        raise ValueError("no such model")


async def as_coroutine(ref: Any) -> Any:
    return await ref


async def kill_process(actor: Any) -> None:
    os.kill(await actor.pid.remote(), signal.SIGKILL)


async def use_and_kill(pool: ActorPool) -> None:
    """Lease a worker, kill its process, and call it again."""
    async with pool.lease(1) as actor:
        await kill_process(actor)
        await actor.wait.remote()


async def call(pool: ActorPool, method: str) -> Any:
    async with pool.lease(1) as actor:
        return await getattr(actor, method).remote()


async def wait_until(condition: Callable[[], bool], description: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), description
