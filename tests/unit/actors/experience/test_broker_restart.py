"""A broker that is restarted gets its state back from ledger, driver and learner; lost groups are issued again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.experience import long_poll
from actors.experience.batch_shards import BatchShard, EndRequest, ShardPolicy
from actors.experience.broker import ExperienceBroker, StepReport
from actors.experience.journal import DriverJournal, LostGroup
from actors.messages import WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.errors import BrokerRestartedError, LedgerError, RunStoppedError

from .experience_groups import group, policy, sequences


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "LONG_POLL_S", 0.01)


def report(version: int) -> StepReport:
    weights = WeightsPublication(manifest=WeightsManifest(version=version, checksum="c", num_bytes=1))
    return StepReport(version=version, publications=[weights], metrics={"loss": float(version)})


class Driver:
    """Keeps a journal of its calls, as the driver's client does, and restarts its broker."""

    def __init__(self, folder: Path, rules: ShardPolicy) -> None:
        self._ledger, self._rules, self.journal = str(folder / "ledger.sqlite"), rules, DriverJournal()
        self.broker = ExperienceBroker(self._ledger, rules, group_size=2)

    async def open(self, step: int, *updates: str) -> None:
        await self.call("open_step", step, [[(uid, "prompt") for uid in update] for update in updates])

    async def add(self, step: int, uid: str, attempt: int = 0) -> None:
        await self.call("record_sampled", uid, attempt)
        await self.call("add", step, group(uid, attempt=attempt))

    async def call(self, method: str, *arguments: object) -> None:
        [answer], _ = await self.broker.answer([(method, arguments)])
        assert not isinstance(answer, Exception), answer
        self.journal.record(method, arguments)

    def restart_broker(self) -> ExperienceBroker:
        self.broker = ExperienceBroker(self._ledger, self._rules, group_size=2, is_restarted=True)
        return self.broker


async def claim(broker: ExperienceBroker, step: int, index: int, rank: int = 0) -> BatchShard:
    shard = await broker.claim(step, rank, index)
    assert isinstance(shard, BatchShard)
    return shard


async def test_ranks_get_the_rest_of_a_shard_that_one_of_them_claimed_before_the_restart(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy(ranks=2, token_budget=30))
    await driver.broker.report_started(0, [])
    await driver.open(0, "abc")
    await driver.add(0, "c")
    first = await claim(driver.broker, 0, 0)
    await driver.add(0, "a")

    broker = driver.restart_broker()
    for call in (broker.answer([]), broker.wait_started(), broker.wait_lost(), broker.claim(0, 0, 0)):
        with pytest.raises(BrokerRestartedError):
            await call
    assert await broker.claim(0, 1, 0) is None, "the driver has not handed over the groups"
    await broker.restore(driver.journal)
    with pytest.raises(BrokerRestartedError, match="learner's reports"):
        await broker.claim(0, 0, 0)
    await broker.recover_learner([report(0)], False)
    assert sequences(first) + sequences(await claim(broker, 0, 0, rank=1)) == [("c", 0), ("c", 1)]
    assert sequences(await claim(broker, 0, 1)) == [("a", 0)], "a fills both ranks, without b"
    await driver.add(0, "b")
    last = await claim(broker, 0, 2)
    assert last.ends_step
    assert await broker.finish_step(0, [], {}) == 0
    counts = await broker.counts()
    assert (counts["lost"], counts["duplicated"], counts["trained_steps"]) == (0, 0, 1)


async def test_finished_step_whose_answer_was_lost_is_trained_once_and_reported_again(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy())
    await driver.broker.report_started(0, [])
    await driver.open(0, "a")
    await driver.add(0, "a")
    await claim(driver.broker, 0, 0)
    await driver.broker.finish_step(0, report(1).publications, report(1).metrics)

    broker = driver.restart_broker()
    with pytest.raises(BrokerRestartedError):
        await broker.finish_step(0, report(1).publications, report(1).metrics)
    await broker.restore(driver.journal)
    await broker.recover_learner([report(0)], False)
    for _ in range(2):
        await broker.finish_step(0, report(1).publications, report(1).metrics)
        assert (await broker.counts())["duplicated"] == 0
        assert await broker.wait_finished(0) == report(1)
    await broker.finish_step(0, report(1).publications, {"loss": 0.5})
    assert (await broker.counts())["duplicated"] == 1, "the step was trained twice, which is a fault"
    assert (await broker.counts())["trained_steps"] == 1


async def test_report_that_the_driver_has_not_taken_comes_again_from_the_learner(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy())
    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    assert await broker.wait_finished(0) is None
    for _ in range(2):
        await broker.recover_learner([report(1), report(2)], True)
    assert await broker.wait_finished(0) == report(1)
    assert await broker.wait_finished(1) == report(2)
    assert await broker.wait_exported() is True


async def test_requests_of_the_driver_hold_for_the_restarted_broker_at_the_same_shard(tmp_path: Path) -> None:
    """The update of group a is applied, so the ranks end after the step and not before group b."""
    driver = Driver(tmp_path, policy())
    await driver.broker.report_started(0, [])
    await driver.open(0, "a", "b")
    await driver.add(0, "a")
    await claim(driver.broker, 0, 0)
    await driver.call("end", "stopped")

    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    await broker.recover_learner([report(0)], False)
    assert await broker.end("stopped") is True
    assert sequences(await claim(broker, 0, 0)) == [("a", 0), ("a", 1)]
    assert await broker.claim(0, 0, 1) is None
    await driver.add(0, "b")
    await claim(broker, 0, 1)
    await broker.finish_step(0, [], {})
    assert await broker.claim(1, 0, 0) == EndRequest(reason="stopped")

    await driver.call("stop", "the teacher is gone")
    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    with pytest.raises(RunStoppedError, match="the teacher is gone"):
        await broker.claim(1, 1, 0)


async def test_learner_with_direct_transfers_continues_after_a_restart(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy())
    before = await driver.broker.ask_transfer(1, {})
    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    with pytest.raises(BrokerRestartedError):
        await broker.transfer_or_delivered(1)
    with pytest.raises(BrokerRestartedError, match="transfer request"):
        await broker.wait_transfer(before)
    await broker.recover_learner([report(1)], False)
    assert await broker.transfer_or_delivered(1) is None, "the driver may still request it"
    await broker.wait_finished(1)  # requested after all workers have version 1
    assert await broker.transfer_or_delivered(1) is True
    assert await broker.transfer_or_delivered(2) is None
    await broker.wait_exported()
    assert await broker.transfer_or_delivered(2) is True


async def test_lost_group_of_a_shard_is_issued_again_and_its_step_trained_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy(ranks=2, token_budget=30))
    broker = driver.broker
    await broker.report_started(0, [])
    await driver.open(0, "abc")
    for uid in "abc":
        await driver.add(0, uid)
    assert {uid for uid, _ in sequences(await claim(broker, 0, 0)) + sequences(await claim(broker, 0, 0, 1))} == {
        *"abc"
    }
    for _ in range(2):  # the answer may be lost, and the call repeated
        assert await broker.report_lost(0, 0, [("b", 0)]) is True
    counts = await broker.counts()
    assert (counts["issued"], counts["claimed"], counts["retried"]) == (1, 2, 1)
    [lost] = await broker.wait_lost() or []
    assert lost == LostGroup(step=0, uid="b", attempt=1)
    assert await broker.wait_lost() is None
    both = sequences(await claim(broker, 0, 0)) + sequences(await claim(broker, 0, 0, 1))
    assert sorted(both) == [("a", 0), ("a", 1), ("c", 0), ("c", 1)]
    assert await broker.claim(0, 0, 1) is None
    await driver.add(0, "b", attempt=1)
    last = await claim(broker, 0, 1)
    assert last.ends_step
    assert last.groups["b"].attempt == 1
    await broker.finish_step(0, [], {})
    await broker.commit(1)
    counts = await broker.counts()
    assert (counts["committed"], counts["lost"], counts["duplicated"]) == (3, 0, 0)


async def test_group_lost_after_its_first_pass_sends_the_ranks_back_to_their_checkpoint(tmp_path: Path) -> None:
    driver = Driver(tmp_path, replace(policy(), passes=2))
    broker = driver.broker
    await broker.report_started(0, [])
    await driver.open(0, "a", "b")
    for uid in "ab":
        await driver.add(0, uid)
    for index in range(3):
        await claim(broker, 0, index)
    assert await broker.report_lost(0, 2, [("a", 0)]) is False
    await broker.report_started(0, [])
    assert await broker.claim(0, 0, 0) is None
    await driver.add(0, "a", attempt=1)
    shards = [await claim(broker, 0, index) for index in range(4)]
    assert [{uid: each.attempt for uid, each in shard.groups.items()} for shard in shards] == [{"a": 1}, {"b": 0}] * 2
    await broker.finish_step(0, [], {})
    counts = await broker.counts()
    assert (counts["lost"], counts["duplicated"], counts["trained_steps"]) == (0, 0, 1)


async def test_loss_that_the_driver_was_not_told_of_is_told_by_the_restarted_broker(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy())
    await driver.broker.report_started(0, [])
    await driver.open(0, "ab")
    for uid in "ab":
        await driver.add(0, uid)
    await claim(driver.broker, 0, 0)
    await driver.broker.report_lost(0, 0, [("b", 0)])
    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    await broker.recover_learner([report(0)], False)
    assert await broker.report_lost(0, 0, [("b", 0)]) is True, "the rank repeats the call"
    lost = await broker.wait_lost()
    assert lost == [LostGroup(step=0, uid="b", attempt=1)]
    driver.journal.forget(lost[0])
    assert driver.journal.steps[0].groups.keys() == {"a"}
    await driver.add(0, "b", attempt=1)
    driver.journal.forget(lost[0])
    assert driver.journal.steps[0].groups.keys() == {"a", "b"}
    assert sequences(await claim(broker, 0, 0)) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


async def test_driver_holds_the_groups_that_took_the_place_of_others_until_a_checkpoint(tmp_path: Path) -> None:
    driver = Driver(tmp_path, policy())
    await driver.open(0, "ab")
    await driver.call("record_sampled", "b", 0)
    await driver.call("refill", 0, "b", 0, "x", "prompt")
    await driver.call("replace_abandoned", 0, "a", 0, "y", "prompt")
    await driver.open(1, "c")
    for step, uid in ((0, "x"), (0, "y"), (1, "c")):
        await driver.add(step, uid)
    assert driver.journal.steps[0].updates == [["y", "x"]]
    broker = driver.restart_broker()
    await broker.restore(driver.journal)
    await broker.recover_learner([report(0)], False)
    assert {uid for uid, _ in sequences(await claim(broker, 0, 0))} == {"x", "y"}
    driver.journal.commit(1)
    assert driver.journal.steps.keys() == {1}
    with pytest.raises(LedgerError, match="cannot be withdrawn"):
        await broker.report_lost(0, 0, [("a", 0)])
