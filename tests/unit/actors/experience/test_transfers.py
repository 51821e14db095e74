"""Transfer requests are served in order, for the version that the learner holds, each with one outcome."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ExperienceGroup
from actors.experience.transfers import TransferOutcome, TransferQueue, TransferRequest
from actors.messages import GroupSummary
from rlad.contracts import Verdicts

SENT = TransferOutcome(state="sent", failures={})
WORKERS = {"rollout-0": "actor 0", "rollout-1": "actor 1"}


def test_requests_for_a_version_are_served_in_order() -> None:
    queue = TransferQueue()
    first, second = queue.ask(3, WORKERS), queue.ask(3, {"rollout-2": "actor 2"})
    assert queue.next(3) == TransferRequest(number=first, version=3, workers=WORKERS)
    assert queue.next(3) == TransferRequest(number=first, version=3, workers=WORKERS), "until it is finished"
    queue.finish(first, SENT)
    assert queue.next(3) == TransferRequest(number=second, version=3, workers={"rollout-2": "actor 2"})
    assert queue.outcome(second) is None
    assert queue.outcome(first) == SENT
    assert queue.outcome(first) is None, "told once"


def test_a_request_waits_for_its_version() -> None:
    """A learner that restarts from a checkpoint holds older weights than requested until it has trained again."""
    queue = TransferQueue()
    number = queue.ask(5, WORKERS)
    assert queue.next(3) is None
    assert queue.next(4) is None
    request = queue.next(5)
    assert request is not None
    assert request.number == number


def test_a_newer_request_supersedes_waiting_requests_for_older_weights() -> None:
    queue = TransferQueue()
    joining = queue.ask(3, {"rollout-2": "actor 2"})
    newer = queue.ask(4, WORKERS)
    assert queue.outcome(joining) == TransferOutcome(state="superseded", failures={})
    assert queue.outcome(newer) is None
    assert queue.next(3) is None


def test_a_request_without_workers_is_sent_at_once_and_counts_as_requested() -> None:
    queue = TransferQueue()
    assert not queue.is_asked_for(2)
    assert queue.outcome(queue.ask(2, {})) == SENT
    assert queue.is_asked_for(2)
    assert queue.is_asked_for(1), "a restarted learner need not wait for versions that the driver has passed"
    assert not queue.is_asked_for(3)


def test_a_learner_restart_fails_the_transfer_in_progress_and_keeps_the_waiting_ones() -> None:
    queue = TransferQueue()
    sending, waiting = queue.ask(3, WORKERS), queue.ask(3, {"rollout-2": "actor 2"})
    queue.sender_restarted()
    assert queue.outcome(sending) is None, "nothing of it was sent"
    queue.begin(sending)
    queue.sender_restarted()
    outcome = queue.outcome(sending)
    assert outcome is not None
    assert (outcome.state, outcome.failures.keys()) == ("sent", WORKERS.keys())
    queue.finish(sending, SENT)
    assert queue.outcome(sending) is None, "a late report changes nothing"
    request = queue.next(3)
    assert request is not None
    assert request.number == waiting


@pytest.fixture
def broker(tmp_path: Path) -> ExperienceBroker:
    policy = ShardPolicy(ranks=1, token_budget=10, skip_equal_rewards=True, skip_truncated=False)
    return ExperienceBroker(str(tmp_path / "ledger.sqlite"), policy, 2)


async def test_the_learner_continues_once_its_version_was_requested_and_sent(
    broker: ExperienceBroker,
) -> None:
    delivered = asyncio.create_task(broker.transfer_or_delivered(0))
    await asyncio.sleep(0)
    assert not delivered.done()
    number = await broker.ask_transfer(0, WORKERS)
    async with asyncio.timeout(1):
        assert await delivered == TransferRequest(number=number, version=0, workers=WORKERS)
    outcome = asyncio.create_task(broker.wait_transfer(number))
    await asyncio.sleep(0)
    await broker.report_transfer(number, SENT)
    async with asyncio.timeout(1):  # the waiting call is woken at once, not at the end of its long poll
        assert await outcome == SENT
    assert await broker.transfer_or_delivered(0) is True


async def test_a_request_is_served_before_a_shard_and_before_the_end(broker: ExperienceBroker) -> None:
    turn = asyncio.create_task(broker.transfer_or_shard(0, 0, 0))
    await asyncio.sleep(0)
    await broker.open_step(0, [[("a", "prompt")]])
    await broker.record_sampled("a", 0)
    await asyncio.sleep(0)
    assert not turn.done()
    summary = GroupSummary(
        uid="a",
        attempt=0,
        prompt_tokens=5,
        response_lengths=(9, 9),
        is_truncated=(False, False),
        tokens_by_version={0: 18},
    )
    verdicts = Verdicts(
        uid="a",
        attempt=0,
        rewards=np.array([0, 1], np.float32),
        outcomes=np.array([1, 0], np.uint8),
        elapsed_s=np.zeros(2, np.float32),
    )
    group = ExperienceGroup(summary=summary, columns="group", verdicts=verdicts, rewards=(0.0, 1.0))
    await broker.add(0, group)
    async with asyncio.timeout(1):
        assert await turn is True
    number = await broker.ask_transfer(0, WORKERS)
    await broker.dismiss()
    request = TransferRequest(number=number, version=0, workers=WORKERS)
    assert await broker.transfer_or_shard(0, 0, 0) == request
    assert await broker.transfer_or_dismissed(0) == request
    await broker.report_transfer(number, SENT)
    assert await broker.transfer_or_shard(0, 0, 0) is True
    assert await broker.transfer_or_dismissed(0) is True
