"""Every wait ends: with an answer, with the failure of what it depends on, or at its deadline."""

from __future__ import annotations

import asyncio

import pytest

from pipelines.training.deadlines import poll, run_unless_failed, together, within
from rlad.errors import DeadlineError, WorkerLostError


async def never() -> None:
    await asyncio.Event().wait()


async def test_poll_asks_until_there_is_an_answer() -> None:
    answers = iter([None, None, 7])

    async def ask() -> int | None:
        return next(answers)

    assert await poll(ask, deadline_s=5, waiting_for="it") == 7


async def test_poll_gives_up_at_its_deadline_and_names_who_was_waited_for() -> None:
    async def ask() -> None:
        await asyncio.sleep(0.01)

    with pytest.raises(DeadlineError, match=r"no answer from the learner within 0\.05 s"):
        await poll(ask, deadline_s=0.05, waiting_for="the learner")


async def test_within_gives_up_at_its_deadline() -> None:
    with pytest.raises(DeadlineError, match="the broker"):
        await within(never(), deadline_s=0.01, waiting_for="the broker")


async def test_work_is_given_up_when_what_it_depends_on_fails() -> None:
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


async def test_work_goes_on_when_what_it_depends_on_ends_well() -> None:
    async def ends() -> None:
        return

    async def work() -> int:
        await asyncio.sleep(0.01)
        return 3

    assert await run_unless_failed(work(), watched=ends()) == 3


async def test_together_raises_the_failure_itself_and_cancels_the_rest() -> None:
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
