"""SIGTERM asks the learner for a checkpoint, and the run does not wait longer than its grace period."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from pipelines.training.deadlines import run_unless_failed, together
from pipelines.training.shutdown import EarlyEnd
from rlad.errors import RunStoppedError


class Broker:
    """Broker that records requests to end."""

    def __init__(self, *, has_started: bool = True) -> None:
        self.requests: list[str] = []
        self._has_started = has_started
        self.asked = asyncio.Event()

    async def end(self, reason: str) -> bool:
        self.requests.append(reason)
        self.asked.set()
        return self._has_started


async def run(broker: Broker, early_end: EarlyEnd, *, learner_writes: bool) -> None:
    """Wait for ever, as a run in mid-step does, and send SIGTERM to this process once the handler is there."""

    async def learner() -> None:
        await broker.asked.wait()
        if not learner_writes:
            await asyncio.Event().wait()
        raise RunStoppedError("stopped by SIGTERM after 7 steps")

    async def work() -> None:
        while signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, before):
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    before = signal.getsignal(signal.SIGTERM)
    await run_unless_failed(work(), watched=together(learner(), early_end.on_sigterm()))


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    def never(number: int, frame: object) -> None:
        raise AssertionError("SIGTERM reached the former handler")

    before = signal.signal(signal.SIGTERM, never)
    yield
    assert signal.getsignal(signal.SIGTERM) is never, "the former handler is put back"
    signal.signal(signal.SIGTERM, before)


async def test_the_run_ends_with_the_learners_checkpoint() -> None:
    broker = Broker()
    early_end = EarlyEnd(broker, grace_period_s=60)  # type: ignore[arg-type]
    with pytest.raises(RunStoppedError, match="after 7 steps"):
        await run(broker, early_end, learner_writes=True)
    assert broker.requests == ["stopped by SIGTERM"]
    assert early_end.is_terminated


async def test_the_run_ends_at_the_end_of_the_grace_period() -> None:
    broker, started = Broker(), time.monotonic()
    early_end = EarlyEnd(broker, grace_period_s=0.2)  # type: ignore[arg-type]
    with pytest.raises(RunStoppedError, match=r"no checkpoint within 0\.2 s \(checkpoints\.grace_period_s\)"):
        await run(broker, early_end, learner_writes=False)
    assert time.monotonic() - started >= 0.2


async def test_a_run_whose_learner_has_not_started_ends_at_once() -> None:
    broker = Broker(has_started=False)
    early_end = EarlyEnd(broker, grace_period_s=3600)  # type: ignore[arg-type]
    with pytest.raises(RunStoppedError, match="before the learner had started"):
        await run(broker, early_end, learner_writes=False)
