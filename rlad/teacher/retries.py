"""Retries of a teacher's client: a limited number after lost replicas, and until the deadline for quotas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    before_sleep_log,
    wait_exponential,
    wait_random,
    wait_random_exponential,
)

from rlad.errors import DeadlineError
from rlad.failures import Action, Event, decide, event_of_call

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Wait before a request that was refused because of the quota is repeated. The first wait is about the time to score a
# small group; the longest keeps the load of repeated requests negligible.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


async def retry_until(
    call: Callable[[], Awaitable[T]],
    *,
    max_retries: int,
    timeout_s: float,
    failure: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Await `call` repeatedly until it returns, raises a permanent error, or the deadline passes.

    Two errors are retried, each by its own rule:

    - `WorkerLostError`, up to `max_retries` times, with exponential backoff up to 10 s, and up to 1 s more at random;
    - `QuotaError`, without a limit, with randomised exponential backoff up to 1 s. It does not count as a retry.

    Any other exception is permanent and propagates unchanged.

    Args:
        call: Makes one attempt. Raises `WorkerLostError` if a replica or the connection was lost, and `QuotaError` if
            the client has reached its quota.
        max_retries: Number of retries after `WorkerLostError`.
        timeout_s: Deadline for all attempts and waits together, in seconds.
        failure: Beginning of the deadline's message, for example "teacher 't' did not score a group".
        sleep: Waits between two attempts; replaceable in tests.

    Returns:
        Result of the first successful attempt.

    Raises:
        DeadlineError: No attempt succeeded within `timeout_s`.
        WorkerLostError: Every attempt lost its replica or connection.
    """
    retry_quota, retry_loss = _quota_retries(sleep), _loss_retries(sleep, max_retries)

    async def attempt() -> T:
        return await call()

    async def attempt_within_quota() -> T:
        return await retry_quota(attempt)

    try:
        async with asyncio.timeout(timeout_s):
            return await retry_loss(attempt_within_quota)
    except TimeoutError as error:
        if isinstance(error, DeadlineError):
            raise
        raise DeadlineError(f"{failure} within {timeout_s:g} s") from error


def _repeats(event: Event, *, budget: int = 0) -> Callable[[RetryCallState], bool]:
    """Return a condition of tenacity: whether the policy repeats a call after its last attempt ended with an event."""

    def is_repeated(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is None or event_of_call(error) is not event:
            return False
        return decide(event, happened=state.attempt_number, budget=budget) is Action.RETRY

    return is_repeated


def _quota_retries(sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    return AsyncRetrying(
        sleep=sleep,
        retry=_repeats(Event.CALL_REFUSED),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        reraise=True,
    )


def _loss_retries(sleep: Callable[[float], Awaitable[None]], max_retries: int) -> AsyncRetrying:
    return AsyncRetrying(
        sleep=sleep,
        retry=_repeats(Event.CALL_LOST, budget=max_retries),
        # Varied, so that the groups of a lost replica do not all come back at once.
        wait=wait_exponential(max=10) + wait_random(0, 1),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
