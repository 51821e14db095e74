"""Requests for weights that the learner sends: in order, for the version it holds, each with one outcome. And how the broker lets both sides wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ExperienceGroup
from actors.experience.transfers import TransferOutcome, TransferQueue, TransferRequest
from actors.messages import GroupSummary

SENT = TransferOutcome(state="sent", failures={})
WORKERS = {"rollout-0": "actor 0", "rollout-1": "actor 1"}


def test_requests_for_a_version_are_taken_in_the_order_in_which_they_were_made() -> None:
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
    """A learner that was restarted from a checkpoint holds older weights than the driver wants, until it has trained them again."""
    queue = TransferQueue()
    number = queue.ask(5, WORKERS)
    assert queue.next(3) is None
    assert queue.next(4) is None
    request = queue.next(5)
    assert request is not None
    assert request.number == number


def test_what_waits_for_older_weights_is_superseded_when_newer_ones_are_asked_for() -> None:
    queue = TransferQueue()
    joining = queue.ask(3, {"rollout-2": "actor 2"})
    newer = queue.ask(4, WORKERS)
    assert queue.outcome(joining) == TransferOutcome(state="superseded", failures={})
    assert queue.outcome(newer) is None
    assert queue.next(3) is None


def test_nobody_to_send_to_is_sent_at_once_and_counts_as_asked_for() -> None:
    queue = TransferQueue()
    assert not queue.is_asked_for(2)
    assert queue.outcome(queue.ask(2, {})) == SENT
    assert queue.is_asked_for(2)
    assert queue.is_asked_for(1), "a restarted learner need not wait for versions that the driver has passed"
    assert not queue.is_asked_for(3)


def test_a_learner_that_is_restarted_while_it_sends_leaves_its_receivers_without_whole_weights_and_the_others_waiting() -> (
    None
):
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


async def test_the_learner_goes_on_when_the_driver_has_asked_for_its_version_and_all_have_it(
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
    async with asyncio.timeout(1):  # it is woken, and does not find out when its long poll ends
        assert await outcome == SENT
    assert await broker.transfer_or_delivered(0) is True


async def test_a_request_comes_before_a_part_and_before_the_end(broker: ExperienceBroker) -> None:
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
    group = ExperienceGroup(summary=summary, columns="group", verdicts=None, rewards=(0.0, 1.0))
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
