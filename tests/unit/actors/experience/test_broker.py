"""The broker hands finished groups to the learner in parts, and can hand out the same parts again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.experience import broker as broker_module
from actors.experience.batch_shards import BatchShard, GroupRefs
from actors.experience.broker import ExperienceBroker, FinishedGroup, ShardPolicy, StepShards
from actors.messages import WeightsPublication
from rlad.contracts import Verdicts, WeightsManifest
from rlad.errors import LedgerError, RunStoppedError, StaleAttemptError
from rlad.packing import LossNormalizer


def policy(
    *, ranks: int = 1, token_budget: int = 100, skip_equal_rewards: bool = True, skip_truncated: bool = False
) -> ShardPolicy:
    return ShardPolicy(
        ranks=ranks, token_budget=token_budget, skip_equal_rewards=skip_equal_rewards, skip_truncated=skip_truncated
    )


def finished(
    uid: str,
    *,
    lengths: tuple[int, ...] = (20, 20),
    rewards: tuple[float, ...] = (0.0, 1.0),
    truncated: tuple[bool, ...] = (False, False),
    attempt: int = 0,
) -> FinishedGroup:
    verdicts = Verdicts(
        uid=uid,
        attempt=attempt,
        rewards=np.array(rewards, np.float32),
        outcomes=np.zeros(len(rewards), np.uint8),
        elapsed_s=np.zeros(len(rewards), np.float32),
    )
    refs = GroupRefs(group=f"group {uid}", verdicts=verdicts, teacher_scores=())
    return FinishedGroup(
        uid=uid,
        attempt=attempt,
        refs=refs,
        prompt_tokens=10,
        response_lengths=lengths,
        is_truncated=truncated,
        rewards=rewards,
    )


def sequences(part: BatchShard) -> list[tuple[str, int]]:
    return sorted(sequence for batch in part.micro_batches for sequence in batch)


def all_parts(parts: StepShards, ranks: int = 1) -> list[list[BatchShard]]:
    collected: list[list[BatchShard]] = []
    while True:
        row = [parts.part(rank, len(collected)) for rank in range(ranks)]
        if row[0] is None:
            return collected
        collected.append([part for part in row if part is not None])


def test_every_response_is_handed_out_once_over_ranks_that_stay_in_step() -> None:
    parts = StepShards(0, [["a", "b", "c"]], 2, policy(ranks=2, token_budget=60))
    for uid in "abc":
        parts.add(finished(uid))
    rows = all_parts(parts, ranks=2)
    assert sorted(sequence for row in rows for part in row for sequence in sequences(part)) == [
        (uid, index) for uid in "abc" for index in (0, 1)
    ]
    for row in rows:
        assert len({len(part.micro_batches) for part in row}) == 1
    assert [row[0].ends_step for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all(part.size.num_responses == 6 for row in rows for part in row)


def test_a_part_is_formed_once_it_fills_the_ranks_while_other_groups_are_still_sampled() -> None:
    parts = StepShards(0, [["a", "b", "c"]], 2, policy(token_budget=60))
    assert parts.part(0, 0) is None
    parts.add(finished("c"))
    first = parts.part(0, 0)
    assert first is not None
    assert sequences(first) == [("c", 0), ("c", 1)]
    assert not first.ends_update
    parts.add(finished("a", lengths=(1, 1)))
    assert parts.part(0, 1) is None, "22 tokens do not fill a micro-batch of 60"
    parts.add(finished("b"))
    last = parts.part(0, 1)
    assert last is not None
    assert last.ends_step
    assert {uid for uid, _ in sequences(last)} == {"a", "b"}


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
def test_the_update_a_group_belongs_to_does_not_depend_on_when_it_finished(order: str) -> None:
    parts = StepShards(0, [["a", "b"], ["c", "d"]], 2, policy())
    for uid in order:
        parts.add(finished(uid))
    update_of = {uid: row[0].update for row in all_parts(parts) for uid, _ in sequences(row[0])}
    assert update_of == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_a_later_update_waits_for_the_earlier_one() -> None:
    parts = StepShards(0, [["a"], ["b"]], 2, policy(token_budget=10))
    parts.add(finished("b"))
    assert parts.part(0, 0) is None
    parts.add(finished("a"))
    assert [(row[0].update, row[0].ends_update, row[0].ends_step) for row in all_parts(parts)] == [
        (0, True, False),
        (1, True, True),
    ]


def test_groups_with_equal_rewards_cost_no_forward_pass_but_still_count() -> None:
    parts = StepShards(0, [["a", "b"]], 2, policy())
    parts.add(finished("a", rewards=(1.0, 1.0)))
    parts.add(finished("b"))
    ((part,),) = all_parts(parts)
    assert {uid for uid, _ in sequences(part)} == {"b"}
    assert part.groups.keys() == {"b"}
    assert part.size.num_responses == 4


def test_an_update_without_any_gradient_still_has_one_backward_pass_on_every_rank() -> None:
    parts = StepShards(0, [["a"]], 2, policy(ranks=2))
    parts.add(finished("a", rewards=(0.0, 0.0)))
    ((first, second),) = all_parts(parts, ranks=2)
    assert first.micro_batches == second.micro_batches == [[]]
    assert first.ends_step


def test_empty_and_where_asked_truncated_responses_are_left_out() -> None:
    group = finished("a", lengths=(0, 5, 7), rewards=(0.0, 1.0, 0.0), truncated=(False, False, True))
    assert group.trainable(policy()) == [1, 2]
    assert group.trainable(policy(skip_truncated=True)) == [1]


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperienceBroker:
    monkeypatch.setattr(broker_module, "LONG_POLL_S", 0.05)
    return ExperienceBroker(str(tmp_path / "ledger.sqlite"), policy(), group_size=2)


async def bring(broker: ExperienceBroker, step: int, uid: str, attempt: int = 0) -> None:
    await broker.record_sampled(uid, attempt)
    await broker.add(step, finished(uid, attempt=attempt))


async def test_a_claim_waits_until_the_part_is_there_and_is_none_at_the_poll_s_end(broker: ExperienceBroker) -> None:
    assert await broker.claim(0, 0, 0) is None
    await broker.open_step(0, [[("a", "prompt")]])
    waiting = asyncio.create_task(broker.claim(0, 0, 0))
    await bring(broker, 0, "a")
    part = await waiting
    assert part is not None
    assert sequences(part) == [("a", 0), ("a", 1)]


async def test_ranks_that_restart_claim_the_same_parts_until_a_checkpoint_holds_them(broker: ExperienceBroker) -> None:
    for step, uid in enumerate("ab"):
        await broker.open_step(step, [[(uid, "prompt")]])
        await bring(broker, step, uid)
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
    assert await broker.claim(0, 0, 0) is None, "what a checkpoint holds is let go"


async def test_a_restart_takes_back_the_report_of_a_step_that_never_happened(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    await bring(broker, 0, "a")
    await broker.claim(0, 0, 0)
    await broker.finish_step(0, [], {})
    assert await broker.wait_finished(0) is not None
    await broker.report_started(0, [])
    assert await broker.wait_finished(0) is None


async def test_weights_that_the_driver_has_are_let_go_also_those_that_a_restarted_learner_makes_once_more(
    broker: ExperienceBroker,
) -> None:
    """Whoever refers to a version keeps a whole model in the object store."""
    weights = [
        WeightsPublication(manifest=WeightsManifest(version=version, checksum="c", num_bytes=1)) for version in range(4)
    ]

    async def train(step: int) -> None:
        await broker.finish_step(step, [weights[step + 1]], {})

    await broker.report_started(0, [weights[0]])
    for step, uid in enumerate("abc"):
        await broker.open_step(step, [[(uid, "prompt")]])
        await bring(broker, step, uid)
    await train(0)
    await train(1)
    report = await broker.wait_finished(0)
    assert report is not None
    assert report.publications == [weights[1]], "not the newest, though it is there"
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
    assert report.publications == [weights[2]], "what the driver waits for comes"


async def test_a_version_that_the_driver_has_not_taken_yet_is_handed_over_as_the_restarted_learner_published_it(
    broker: ExperienceBroker,
) -> None:
    """What the process published that is gone went with it."""
    before, again = (
        WeightsPublication(manifest=WeightsManifest(version=1, checksum=checksum, num_bytes=1))
        for checksum in ("before", "again")
    )
    await broker.open_step(0, [[("a", "prompt")]])
    await bring(broker, 0, "a")
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
        await broker.add(0, finished("a", attempt=0))
    await bring(broker, 0, "a", attempt=1)
    assert await broker.claim(0, 0, 0) is not None


async def test_a_new_driver_issues_uncommitted_steps_again(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    await bring(broker, 0, "a")
    await broker.claim(0, 0, 0)
    await broker.finish_step(0, [], {})
    await broker.reopen(0)
    assert await broker.open_step(0, [[("a", "prompt")]]) == {"a": 1}


async def test_a_group_cannot_be_issued_for_two_steps(broker: ExperienceBroker) -> None:
    await broker.open_step(0, [[("a", "prompt")]])
    with pytest.raises(LedgerError, match="for step 0"):
        await broker.open_step(1, [[("a", "prompt")]])


async def test_whoever_waits_is_told_when_the_run_stops(broker: ExperienceBroker) -> None:
    waiting = asyncio.create_task(broker.claim(0, 0, 0))
    await asyncio.sleep(0)
    await broker.stop("the teacher is gone")
    with pytest.raises(RunStoppedError, match="the teacher is gone"):
        await waiting
    with pytest.raises(RunStoppedError):
        await broker.wait_started()


def test_a_group_that_takes_anothers_place_is_of_the_same_update() -> None:
    """Updates a, b and c, d; b's place goes to x, which arrives last: the first update waits for it, the second keeps its own."""
    parts = StepShards(0, [["a", "b"], ["c", "d"]], 2, policy())
    for uid in "acd":
        parts.add(finished(uid))
    parts.replace("b", by="x")
    assert parts.part(0, 0) is None
    parts.add(finished("x"))
    first, second = (part for [part] in all_parts(parts))
    assert ({*first.groups}, {*second.groups}) == ({"a", "x"}, {"c", "d"})
    assert (first.ends_update, second.ends_step) == (True, True)


def test_a_mean_over_tokens_waits_for_all_groups_of_an_update_and_counts_their_tokens() -> None:
    """Also those of a group with equal rewards, which is in no part; not those of truncated responses where they are masked."""
    parts = StepShards(0, [["a", "b"]], 2, replace(policy(token_budget=1, skip_truncated=True), counts_tokens=True))
    parts.add(finished("a", lengths=(4, 5), truncated=(False, True)))
    assert parts.part(0, 0) is None
    parts.add(finished("b", lengths=(1, 2), rewards=(1.0, 1.0)))
    part = parts.part(0, 0)
    assert part is not None
    assert part.size == LossNormalizer(num_responses=4, num_tokens=4 + 1 + 2)


async def test_the_ranks_stay_until_they_are_dismissed(broker: ExperienceBroker) -> None:
    exported, dismissed = (asyncio.create_task(wait()) for wait in (broker.wait_exported, broker.wait_dismissed))
    await broker.report_exported()
    assert await exported
    assert not dismissed.done()
    await broker.dismiss()
    assert await dismissed
    assert await broker.wait_dismissed()
