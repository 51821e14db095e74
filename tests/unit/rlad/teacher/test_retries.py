"""A lost replica is worth so many tries, a quota the whole time, anything else none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from rlad.errors import DeadlineError, EngineError, QuotaError, RladError, WorkerLostError
from rlad.teacher.retries import retry_until


class Script:
    """Raises what it is told, one after the other, then returns how often it was called."""

    def __init__(self, *errors: RladError) -> None:
        self._errors: Iterator[RladError] = iter(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        error = next(self._errors, None)
        if error is not None:
            raise error
        return self.calls


async def at_once(seconds: float) -> None:
    assert 0 <= seconds <= 10
    await asyncio.sleep(0)


LOST, REFUSED = WorkerLostError("gone"), QuotaError("enough")


async def test_losses_are_tried_again_up_to_their_number() -> None:
    two_losses = Script(LOST, LOST)
    assert await retry_until(lambda: two_losses(), max_retries=2, timeout_s=5, failure="not done", sleep=at_once) == 3
    script = Script(LOST, LOST, LOST)
    with pytest.raises(WorkerLostError, match="gone"):
        await retry_until(script, max_retries=2, timeout_s=5, failure="not done", sleep=at_once)
    assert script.calls == 3


async def test_refusals_for_quota_count_as_no_loss_and_last_until_the_deadline() -> None:
    assert (
        await retry_until(
            Script(*[REFUSED] * 50, LOST, *[REFUSED] * 50),
            max_retries=1,
            timeout_s=5,
            failure="not done",
            sleep=at_once,
        )
        == 102
    )
    with pytest.raises(DeadlineError, match="the group was not scored within 0.05 s"):
        await retry_until(
            Script(*[REFUSED] * 1_000_000),
            max_retries=1,
            timeout_s=0.05,
            failure="the group was not scored",
            sleep=at_once,
        )


@pytest.mark.parametrize("error", [EngineError("broken"), DeadlineError("its own deadline")])
async def test_anything_else_is_raised_as_it_is(error: RladError) -> None:
    script = Script(error)
    with pytest.raises(type(error), match=str(error)):
        await retry_until(script, max_retries=3, timeout_s=5, failure="not done", sleep=at_once)
    assert script.calls == 1
