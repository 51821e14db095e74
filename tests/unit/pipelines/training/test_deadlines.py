"""Every wait ends: with a result, with an error, or at its deadline."""

from __future__ import annotations

import asyncio

import pytest

from pipelines.training.deadlines import poll, run_unless_failed, together, within
from rlad.errors import DeadlineError, WorkerLostError


async def never() -> None:
    await asyncio.Event().wait()


async def test_poll_repeats_until_there_is_a_result() -> None:
    answers = iter([None, None, 7])

    async def ask() -> int | None:
        return next(answers)

    assert await poll(ask, deadline_s=5, waiting_for="it") == 7


async def test_poll_raises_at_its_deadline_and_names_what_was_awaited() -> None:
    async def ask() -> None:
        await asyncio.sleep(0.01)

    with pytest.raises(DeadlineError, match=r"no answer from the learner within 0\.05 s"):
        await poll(ask, deadline_s=0.05, waiting_for="the learner")


async def test_within_raises_at_its_deadline() -> None:
    with pytest.raises(DeadlineError, match="the broker"):
        await within(never(), deadline_s=0.01, waiting_for="the broker")


async def test_work_is_cancelled_when_the_watched_coroutine_fails() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await never()
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise WorkerLostError("the learner is gone")

    with pytest.raises(WorkerLostError):
        await run_unless_failed(work(), watched=fails())
    assert cancelled.is_set()


async def test_work_continues_when_the_watched_coroutine_returns() -> None:
    async def ends() -> None:
        return

    async def work() -> int:
        await asyncio.sleep(0.01)
        return 3

    assert await run_unless_failed(work(), watched=ends()) == 3


async def test_together_raises_the_first_error_and_cancels_the_rest() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await never()
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise WorkerLostError("gone")

    with pytest.raises(WorkerLostError, match="gone"):
        await together(waits(), fails())
    assert cancelled.is_set()
