"""What a driver tells the broker: in order, together where it is busy, each with its own answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.experience.broker import ExperienceBroker, ShardPolicy
from pipelines.simulation.stand_ins import InProcess
from pipelines.training.broker_client import BrokerClient
from rlad.errors import DeadlineError, StaleAttemptError, WorkerLostError

POLICY = ShardPolicy(ranks=1, token_budget=100, skip_equal_rewards=True, skip_truncated=True)


class SlowBroker:
    """A broker whose `answer` ends when it is let go; counts what each call carried."""

    def __init__(self) -> None:
        self.carried: list[list[str]] = []
        self.let_go = asyncio.Event()

    async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        self.carried.append([method for method, _ in calls])
        await self.let_go.wait()
        return [f"{method}{arguments}" for method, arguments in calls]


async def test_what_is_told_during_a_call_travels_with_the_next_one_and_nothing_overtakes() -> None:
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    first = [asyncio.create_task(client.tell("a", number)) for number in range(2)]
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(client.tell(name)) for name in ("b", "c", "d")]
    await asyncio.sleep(0.01)
    assert broker.carried == [["a", "a"]]
    broker.let_go.set()
    assert await asyncio.gather(*first, *later) == ["a(0,)", "a(1,)", "b()", "c()", "d()"]
    assert broker.carried == [["a", "a"], ["b", "c", "d"]]


async def test_an_error_is_of_the_call_that_made_it_alone(tmp_path: Any) -> None:
    client = BrokerClient(InProcess(ExperienceBroker(str(tmp_path / "ledger.sqlite"), POLICY, 2)))
    assert await client.tell("open_step", 0, [[("u0", "p0"), ("u1", "p1")]]) == {"u0": 0, "u1": 0}
    assert await client.tell("reissue", "u0") == 1
    stale, fresh = await asyncio.gather(
        client.tell("record_sampled", "u0", 0), client.tell("record_sampled", "u1", 0), return_exceptions=True
    )
    assert isinstance(stale, StaleAttemptError)
    assert fresh is None
    assert (await client.tell("counts"))["sampled"] == 1


async def test_whoever_gives_up_does_not_disturb_the_others() -> None:
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    gone, stays = asyncio.create_task(client.tell("a")), asyncio.create_task(client.tell("b"))
    await asyncio.sleep(0.01)
    gone.cancel()
    broker.let_go.set()
    assert await stays == "b()"


async def test_all_that_were_told_together_learn_that_the_broker_is_gone_and_the_next_call_is_tried_again() -> None:
    class Dying:
        calls = 0

        async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
            self.calls += 1
            if self.calls == 1:
                raise WorkerLostError("it died")
            return [None] * len(calls)

    client = BrokerClient(InProcess(Dying()))
    assert [
        type(error) for error in await asyncio.gather(client.tell("a"), client.tell("b"), return_exceptions=True)
    ] == [WorkerLostError] * 2
    assert await client.tell("c") is None


async def test_an_answer_that_does_not_come_is_missed_in_time_and_what_is_told_next_is_sent_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.training.broker_client._ANSWER_TIMEOUT_S", 0.05)
    broker = SlowBroker()
    client = BrokerClient(InProcess(broker))
    with pytest.raises(DeadlineError, match="the broker"):
        await client.tell("a")
    broker.let_go.set()
    assert await client.tell("stop") == "stop()"
    assert broker.carried == [["a"], ["stop"]]


async def test_a_broker_that_does_not_answer_a_question_is_noticed_long_before_the_wait_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.training.broker_client._ANSWER_TIMEOUT_S", 0.05)

    class Hanging:
        async def wait_finished(self, step: int) -> None:
            await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match="wait_finished"):
        await BrokerClient(InProcess(Hanging())).poll("wait_finished", 3, deadline_s=3600, waiting_for="the learner")
