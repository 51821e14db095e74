"""Calls to the broker keep their order, share remote calls while it is busy, and each get their own answer."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from pipelines.simulation.stand_ins import InProcess
from pipelines.training.broker_client import BrokerClient
from rlad.errors import DeadlineError, StaleAttemptError, WorkerLostError

POLICY = ShardPolicy(ranks=1, token_budget=100, skip_equal_rewards=True, skip_truncated=True)


class SlowBroker:
    """Broker whose `answer` waits for an event. Records the methods that each call carried."""

    def __init__(self) -> None:
        self.carried: list[list[str]] = []
        self.may_answer = asyncio.Event()

    async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> tuple[list[Any], int]:
        self.carried.append([method for method, _ in calls])
        await self.may_answer.wait()
        return [f"{method}{arguments}" for method, arguments in calls], 0


async def test_calls_during_a_remote_call_are_sent_together_in_the_next_one_in_order() -> None:
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    first = [asyncio.create_task(client.reissue(uid)) for uid in ("a", "b")]
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(call) for call in (client.reopen(1), client.counts(), client.reissue("c"))]
    await asyncio.sleep(0.01)
    assert broker.carried == [["reissue", "reissue"]]
    broker.may_answer.set()
    answers = await asyncio.gather(*first, *later)
    assert answers == ["reissue('a',)", "reissue('b',)", "reopen(1,)", "counts()", "reissue('c',)"]
    assert broker.carried == [["reissue", "reissue"], ["reopen", "counts", "reissue"]]


def test_every_typed_method_has_the_parameters_of_the_broker_s_method() -> None:
    """The broker dispatches by method name, so the two signatures must stay equal."""
    methods = {
        name: method for name, method in vars(BrokerClient).items() if not name.startswith("_") and callable(method)
    }
    assert len(methods) >= 12
    for name, method in methods.items():
        ours = [each for each in inspect.signature(method).parameters if each != "deadline_s"]
        theirs = inspect.signature(getattr(ExperienceBroker, name)).parameters
        # `ray.remote` adds this parameter to the methods of the class itself, for every test that runs later.
        assert ours == [each for each in theirs if each != "_ray_trace_ctx"], name


async def test_every_typed_method_that_does_not_wait_is_batchable(tmp_path: Path) -> None:
    broker = ExperienceBroker(str(tmp_path / "ledger.sqlite"), POLICY, 2)
    sent = {
        name for name, method in vars(BrokerClient).items() if not name.startswith(("_", "wait_")) and callable(method)
    }
    assert sent == broker._batchable.keys()


async def test_an_error_belongs_only_to_the_call_that_caused_it(tmp_path: Path) -> None:
    client = BrokerClient(InProcess(ExperienceBroker(str(tmp_path / "ledger.sqlite"), POLICY, 2)))
    assert await client.open_step(0, [[("u0", "p0"), ("u1", "p1")]]) == {"u0": 0, "u1": 0}
    assert await client.reissue("u0") == 1
    stale, fresh = await asyncio.gather(
        client.record_sampled("u0", 0), client.record_sampled("u1", 0), return_exceptions=True
    )
    assert isinstance(stale, StaleAttemptError)
    assert fresh is None
    assert (await client.counts())["sampled"] == 1
    assert await client.end("stopped") is False, "no learner has started"


async def test_a_cancelled_caller_does_not_disturb_the_others() -> None:
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    cancelled, other = asyncio.create_task(client.counts()), asyncio.create_task(client.reopen(0))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    broker.may_answer.set()
    assert await other == "reopen(0,)"


async def test_all_callers_of_a_failed_remote_call_get_its_error_and_the_next_call_is_sent() -> None:
    class Dying:
        calls = 0

        async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> tuple[list[Any], int]:
            self.calls += 1
            if self.calls == 1:
                raise WorkerLostError("it died")
            return [None] * len(calls), 0

    client = BrokerClient(InProcess(Dying()))
    errors = await asyncio.gather(client.counts(), client.reopen(0), return_exceptions=True)
    assert [type(error) for error in errors] == [WorkerLostError] * 2
    assert await client.counts() is None


async def test_a_missing_answer_raises_at_its_deadline_and_the_next_call_is_sent_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.training.broker_client._ANSWER_TIMEOUT_S", 0.05)
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    with pytest.raises(DeadlineError, match="the broker"):
        await client.counts()
    broker.may_answer.set()
    await client.stop("the reason")
    assert broker.carried == [["counts"], ["stop"]]


async def test_a_broker_that_does_not_answer_a_long_poll_is_noticed_before_the_wait_s_own_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.training.broker_client._ANSWER_TIMEOUT_S", 0.05)

    class Hanging:
        async def wait_finished(self, step: int) -> None:
            await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match="wait_finished"):
        await BrokerClient(InProcess(Hanging())).wait_finished(3, deadline_s=3600)
