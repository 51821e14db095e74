"""Retries after lost workers, quota refusals and other errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from rlad.errors import DeadlineError, EngineError, QuotaError, RladError, WorkerLostError
from rlad.teacher.retries import retry_until


class Script:
    """Callable that raises the given errors in turn, then returns its number of calls."""

    def __init__(self, *errors: RladError) -> None:
        self._errors: Iterator[RladError] = iter(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        error = next(self._errors, None)
        if error is not None:
            raise error
        return self.calls


async def no_wait(seconds: float) -> None:
    assert 0 <= seconds <= 10
    await asyncio.sleep(0)


LOST, REFUSED = WorkerLostError("replica died"), QuotaError("quota reached")


async def test_losses_are_retried_up_to_max_retries() -> None:
    two_losses = Script(LOST, LOST)
    assert await retry_until(lambda: two_losses(), max_retries=2, timeout_s=5, failure="not done", sleep=no_wait) == 3
    script = Script(LOST, LOST, LOST)
    with pytest.raises(WorkerLostError, match="replica died"):
        await retry_until(script, max_retries=2, timeout_s=5, failure="not done", sleep=no_wait)
    assert script.calls == 3


async def test_quota_refusals_are_retried_until_the_deadline_and_do_not_count_as_losses() -> None:
    assert (
        await retry_until(
            Script(*[REFUSED] * 50, LOST, *[REFUSED] * 50),
            max_retries=1,
            timeout_s=5,
            failure="not done",
            sleep=no_wait,
        )
        == 102
    )
    with pytest.raises(DeadlineError, match="the group was not scored within 0.05 s"):
        await retry_until(
            Script(*[REFUSED] * 1_000_000),
            max_retries=1,
            timeout_s=0.05,
            failure="the group was not scored",
            sleep=no_wait,
        )


@pytest.mark.parametrize("error", [EngineError("broken"), DeadlineError("its own deadline")])
async def test_other_errors_are_not_retried(error: RladError) -> None:
    script = Script(error)
    with pytest.raises(type(error), match=str(error)):
        await retry_until(script, max_retries=3, timeout_s=5, failure="not done", sleep=no_wait)
    assert script.calls == 1
