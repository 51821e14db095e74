"""How patient a teacher's client is: lost replicas are tried again so many times, a quota until the deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random_exponential,
)

from rlad.errors import DeadlineError, QuotaError, WorkerLostError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Between two tries of a group that was refused for its client's quota: at first about what scoring a small group takes, at last what costs nothing.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


async def retry_until(
    call: Callable[[], Awaitable[T]],
    *,
    max_retries: int,
    timeout_s: float,
    what: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Call until it succeeds, fails for good, or the time is over.

    Args:
        call: raises `WorkerLostError` where a replica or the connection was lost, `QuotaError` where this client has enough under way.
        max_retries: after a loss. A refusal for quota counts nowhere: it is waited for until the deadline.
        timeout_s: of everything together.
        what: was not done when the deadline passes, for the message.
        sleep: between two tries.

    Raises:
        DeadlineError: not done within `timeout_s`.
        WorkerLostError: lost in every try.
    """
    refused = AsyncRetrying(
        sleep=sleep,
        retry=retry_if_exception_type(QuotaError),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        reraise=True,
    )
    lost = AsyncRetrying(
        sleep=sleep,
        retry=retry_if_exception_type(WorkerLostError),
        stop=stop_after_attempt(max_retries + 1),
        wait=wait_exponential(max=10),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )

    async def once() -> T:
        return await call()

    async def until_admitted() -> T:
        return await refused(once)

    try:
        async with asyncio.timeout(timeout_s):
            return await lost(until_admitted)
    except TimeoutError as error:
        if isinstance(error, DeadlineError):
            raise
        raise DeadlineError(f"{what} within {timeout_s:g} s") from error
