"""Waiting with a deadline: no await of the driver lasts forever, and every error names what was awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from rlad.errors import DeadlineError

T = TypeVar("T")


async def poll(ask: Callable[[], Awaitable[T | None]], *, deadline_s: float, waiting_for: str) -> T:
    """Call a long-polling method until it returns a result.

    Raises:
        DeadlineError: No result within `deadline_s`.
    """
    clock = asyncio.get_running_loop().time  # virtual in the simulator
    deadline = clock() + deadline_s
    while clock() < deadline:
        answer = await within(ask(), deadline_s=deadline - clock() + 30, waiting_for=waiting_for)
        if answer is not None:
            return answer
    raise DeadlineError(f"no answer from {waiting_for} within {deadline_s:g} s")


async def within(awaitable: Awaitable[T], *, deadline_s: float, waiting_for: str) -> T:
    """Await with a deadline.

    Raises:
        DeadlineError: No result within `deadline_s`.
    """
    try:
        async with asyncio.timeout(deadline_s):  # `wait_for` would create a task
            return await awaitable
    except TimeoutError as error:
        if isinstance(error, DeadlineError):
            raise
        raise DeadlineError(f"no answer from {waiting_for} within {deadline_s:g} s") from error


async def run_unless_failed(work: Coroutine[Any, Any, T], *, watched: Coroutine[Any, Any, Any]) -> T:
    """Run `work`, and cancel it as soon as `watched` fails. `watched` may also return before `work` does.

    Raises:
        Exception: The error of `watched`, or of `work`.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(watched)
    try:
        # unlimited wait: both coroutines wait with deadlines of their own
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not working.done():
            watching.result()  # raises the error of `watched`
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines concurrently and return their results in order.

    Raises:
        Exception: The first error, as it is and not in a group. The other coroutines are cancelled.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
