"""Tests of the virtual clock."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlad.testing import StuckError, run_in_virtual_time


def test_hours_of_sleep_take_no_real_time() -> None:
    async def sleep() -> float:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run_in_virtual_time(sleep()) == 7200
    assert time.monotonic() - started < 60


def test_timers_fire_in_order_of_their_deadlines() -> None:
    order = []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((seconds, asyncio.get_running_loop().time()))

    async def run() -> None:
        await asyncio.gather(sleep(3), sleep(1), sleep(2))

    run_in_virtual_time(run())
    assert order == [(1, 1), (2, 2), (3, 3)]


def test_timeout_expires_in_virtual_time() -> None:
    async def run() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(run()) == 60


def test_deadlock_is_an_error() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError, match="every coroutine waits, and no timer is pending"):
        run_in_virtual_time(wait())
