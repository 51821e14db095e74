"""Waiting with a deadline and a named owner: no await in a driver goes on for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from rlad.errors import DeadlineError

T = TypeVar("T")


async def poll(ask: Callable[[], Awaitable[T | None]], *, deadline_s: float, waiting_for: str) -> T:
    """Ask a long-polling method until it answers.

    Raises:
        DeadlineError: no answer within `deadline_s`.
    """
    clock = asyncio.get_running_loop().time  # which is virtual in the simulator
    deadline = clock() + deadline_s
    while clock() < deadline:
        answer = await within(ask(), deadline_s=deadline - clock() + 30, waiting_for=waiting_for)
        if answer is not None:
            return answer
    raise DeadlineError(f"no answer from {waiting_for} within {deadline_s:g} s")


async def within(awaitable: Awaitable[T], *, deadline_s: float, waiting_for: str) -> T:
    """Await with a deadline.

    Raises:
        DeadlineError: nothing came within `deadline_s`.
    """
    try:
        async with asyncio.timeout(deadline_s):  # `wait_for` would make a task of it
            return await awaitable
    except TimeoutError as error:
        if isinstance(error, DeadlineError):
            raise
        raise DeadlineError(f"no answer from {waiting_for} within {deadline_s:g} s") from error


async def unless(watched: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but give up the moment `watched` fails. `watched` may also end quietly before `work` does."""
    working, watching = asyncio.create_task(work), asyncio.create_task(watched)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not working.done():
            watching.result()  # raises what the watched part failed with
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run all at once and return their results in order. The first failure cancels the others and is raised as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
