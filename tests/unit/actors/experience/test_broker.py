"""The broker hands groups to the learner in batch shards, and can hand out the same shards again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.experience import long_poll
from actors.experience.batch_shards import BatchShard, EndRequest
from actors.experience.broker import ExperienceBroker
from actors.messages import WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.errors import LedgerError, RunStoppedError, StaleAttemptError

from .experience_groups import group, policy, sequences


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperienceBroker:
    monkeypatch.setattr(long_poll, "LONG_POLL_S", 0.05)
    return ExperienceBroker(str(tmp_path / "ledger.sqlite"), policy(), group_size=2)


async def add_group(broker: ExperienceBroker, step: int, uid: str, attempt: int = 0) -> None:
    await broker.record_sampled(uid, attempt)
    await broker.add(step, group(uid, attempt=attempt))


async def test_a_claim_waits_for_its_shard_and_returns_none_after_the_long_poll(broker: ExperienceBroker) -> None:
    assert await broker.claim(0, 0, 0) is None
    await broker.open_step(0, [[("a", "prompt")]])
    waiting = asyncio.create_task(broker.claim(0, 0, 0))
    await add_group(broker, 0, "a")
    shard = await waiting
    assert shard is not None
    assert sequences(shard) == [("a", 0), ("a", 1)]


async def test_restarted_ranks_claim_the_same_shards_until_a_checkpoint_holds_them(broker: ExperienceBroker) -> None:
    for step, uid in enumerate("ab"):
        await broker.open_step(step, [[(uid, "prompt")]])
        await add_group(broker, step, uid)
        assert await broker.claim(step, 0, 0) is not None
        await broker.finish_step(step, [], {})
    await broker.commit(1)
    await broker.report_started(1, [])
    again = await broker.claim(1, 0, 0)
    assert again is not None
    assert sequences(again) == [("b", 0), ("b", 1)]
    await broker.finish_step(1, [], {"loss": 1.0})
    counts = await broker.counts()
    assert (counts["lost"], counts["duplicated"], counts["trained_steps"]) == (0, 0, 2)
    await broker.commit(2)
    assert await broker.claim(0, 0, 0) is None, "the shards of a checkpoint are released"


async def test_a_restart_withdraws_the_report_of_an_undone_step(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    await add_group(broker, 0, "a")
    await broker.claim(0, 0, 0)
    await broker.finish_step(0, [], {})
    assert await broker.wait_finished(0) is not None
    await broker.report_started(0, [])
    assert await broker.wait_finished(0) is None


async def test_publications_older_than_the_requested_version_are_dropped_also_after_a_restart(
    broker: ExperienceBroker,
) -> None:
    """Every publication pins a full model copy in the object store."""
    weights = [
        WeightsPublication(manifest=WeightsManifest(version=version, checksum="c", num_bytes=1)) for version in range(4)
    ]

    async def train(step: int) -> None:
        await broker.finish_step(step, [weights[step + 1]], {})

    await broker.report_started(0, [weights[0]])
    for step, uid in enumerate("abc"):
        await broker.open_step(step, [[(uid, "prompt")]])
        await add_group(broker, step, uid)
    await train(0)
    await train(1)
    report = await broker.wait_finished(0)
    assert report is not None
    assert report.publications == [weights[1]], "the requested version, although a newer one exists"
    assert await broker.wait_finished(1) is not None
    assert await broker.wait_finished(0) is None
    started = await broker.wait_started()
    assert started is not None
    assert started.publications == []

    await broker.report_started(0, [weights[0]])
    started = await broker.wait_started()
    assert started is not None
    assert started.publications == []
    await train(0)
    assert await broker.wait_finished(0) is None
    await train(1)
    report = await broker.wait_finished(1)
    assert report is not None
    assert report.publications == [weights[2]], "the awaited version is kept"


async def test_an_untaken_version_is_handed_over_as_the_restarted_learner_published_it(
    broker: ExperienceBroker,
) -> None:
    """The objects of the lost process are gone."""
    before, again = (
        WeightsPublication(manifest=WeightsManifest(version=1, checksum=checksum, num_bytes=1))
        for checksum in ("before", "again")
    )
    await broker.open_step(0, [[("a", "prompt")]])
    await add_group(broker, 0, "a")
    await broker.finish_step(0, [before], {"loss": 1.0})
    await broker.report_started(1, [again])
    report = await broker.wait_finished(0)
    assert report is not None
    assert (report.publications, report.metrics) == ([again], {"loss": 1.0})


async def test_a_late_group_of_a_replaced_attempt_is_refused(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    await broker.record_sampled("a", 0)
    assert await broker.reissue("a") == 1
    with pytest.raises(StaleAttemptError):
        await broker.add(0, group("a", attempt=0))
    await add_group(broker, 0, "a", attempt=1)
    assert await broker.claim(0, 0, 0) is not None


async def test_a_new_driver_issues_uncommitted_steps_again(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    await add_group(broker, 0, "a")
    await broker.claim(0, 0, 0)
    await broker.finish_step(0, [], {})
    await broker.reopen(0)
    assert await broker.open_step(0, [[("a", "prompt")]]) == {"a": 1}


async def test_a_group_cannot_be_issued_for_two_steps(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    with pytest.raises(LedgerError, match="for step 0"):
        await broker.open_step(1, [[("a", "prompt")]])


async def test_waiting_callers_fail_when_the_run_stops(broker: ExperienceBroker) -> None:
    waiting = asyncio.create_task(broker.claim(0, 0, 0))
    await asyncio.sleep(0)
    await broker.stop("the teacher is gone")
    with pytest.raises(RunStoppedError, match="the teacher is gone"):
        await waiting
    with pytest.raises(RunStoppedError):
        await broker.wait_started()


async def test_the_ranks_stay_until_they_are_dismissed(broker: ExperienceBroker) -> None:
    exported, dismissed = (asyncio.create_task(wait()) for wait in (broker.wait_exported, broker.wait_dismissed))
    await broker.report_exported()
    assert await exported
    assert not dismissed.done()
    await broker.dismiss()
    assert await dismissed
    assert await broker.wait_dismissed()


async def test_a_request_to_end_reaches_all_ranks_at_the_same_shard(tmp_path: Path) -> None:
    broker = ExperienceBroker(str(tmp_path / "ledger.sqlite"), policy(ranks=2, token_budget=30), group_size=2)
    await broker.report_started(0, [])
    await broker.open_step(0, [[("a", "prompt"), ("b", "prompt")]])
    await add_group(broker, 0, "a")
    assert isinstance(await broker.claim(0, 0, 0), BatchShard)
    assert await broker.end("stopped") is True
    assert isinstance(await broker.claim(0, 1, 0), BatchShard), "the first rank has this shard already"
    assert await broker.claim(0, 1, 1) == await broker.claim(0, 0, 1) == EndRequest(reason="stopped")


async def test_a_learner_that_has_not_started_has_nothing_to_write(broker: ExperienceBroker) -> None:
    assert await broker.end("stopped") is False
    assert await broker.claim(0, 0, 0) == EndRequest(reason="stopped")


async def test_a_step_with_an_applied_update_is_finished_before_the_end(broker: ExperienceBroker) -> None:
    await broker.report_started(0, [])
    await broker.open_step(0, [[("a", "prompt")], [("b", "prompt")]])
    await add_group(broker, 0, "a")
    assert isinstance(await broker.claim(0, 0, 0), BatchShard)
    assert await broker.end("stopped") is True
    assert await broker.claim(0, 0, 1) is None, "the update of group a is applied, that of group b is missing"
    await add_group(broker, 0, "b")
    assert isinstance(await broker.claim(0, 0, 1), BatchShard)
    await broker.finish_step(0, [], {})
    assert await broker.claim(1, 0, 0) == EndRequest(reason="stopped")
    assert await broker.transfer_or_delivered(1) is True
    assert await broker.transfer_or_shard(1, 1, 0) is True
