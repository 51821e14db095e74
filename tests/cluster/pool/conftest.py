"""Pools of echo actors on a real Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from actors.pool.pool import ActorPool

from .echo import Echo, MakePool, as_coroutine


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
