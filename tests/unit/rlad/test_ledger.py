"""The ledger keeps one history in which every group is trained on exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlad.errors import LedgerError, RunDirectoryError, StaleAttemptError
from rlad.ledger import GroupState, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def groups(step: int, count: int = 2) -> list[tuple[str, str]]:
    return [(f"d:0:{step * count + index}", f"prompt{index}") for index in range(count)]


def train(ledger: Ledger, step: int) -> list[str]:
    attempts = ledger.issue(step, groups(step))
    for uid, attempt in attempts.items():
        ledger.record_sampled(uid, attempt)
        ledger.record_scored(uid, attempt)
    ledger.record_claimed(attempts)
    ledger.record_trained(step, attempts)
    return list(attempts)


def test_group_passes_through_every_state(ledger: Ledger) -> None:
    train(ledger, 0)
    assert ledger.counts().states[GroupState.CLAIMED] == 2
    ledger.commit(1)
    counts = ledger.counts()
    assert counts.states[GroupState.COMMITTED] == 2
    assert (counts.trained_steps, counts.lost, counts.duplicated, counts.retried) == (1, 0, 0, 0)


def test_late_result_of_a_replaced_attempt_is_stale(ledger: Ledger) -> None:
    (uid, _), *_ = groups(0)
    ledger.issue(0, groups(0))
    assert ledger.reissue(uid) == 1
    with pytest.raises(StaleAttemptError, match="attempt 0 has been replaced by attempt 1"):
        ledger.record_sampled(uid, 0)
    ledger.record_sampled(uid, 1)


@pytest.mark.parametrize("steps_after_checkpoint", [1, 3])
def test_rewind_forgets_training_after_the_checkpoint(ledger: Ledger, steps_after_checkpoint: int) -> None:
    train(ledger, 0)
    ledger.commit(1)
    claimed = {step: train(ledger, step) for step in range(1, 1 + steps_after_checkpoint)}
    ledger.rewind(1)
    assert ledger.counts().trained_steps == 1
    for step, uids in claimed.items():
        ledger.record_claimed(uids)
        ledger.record_trained(step, uids)
    counts = ledger.counts()
    assert (counts.trained_steps, counts.lost, counts.duplicated) == (1 + steps_after_checkpoint, 0, 0)


def test_restart_without_rewind_counts_as_duplicated(ledger: Ledger) -> None:
    uids = train(ledger, 0)
    ledger.record_trained(0, uids)
    assert ledger.counts().duplicated == 2


def test_untrained_group_of_a_trained_step_counts_as_lost(ledger: Ledger) -> None:
    attempts = ledger.issue(0, groups(0))
    for uid in attempts:
        ledger.record_sampled(uid, 0)
        ledger.record_scored(uid, 0)
    first, _ = attempts
    ledger.record_claimed([first])
    ledger.record_trained(0, [first])
    assert ledger.counts().lost == 1


def test_reopen_returns_uncommitted_groups_for_a_new_attempt(ledger: Ledger) -> None:
    train(ledger, 0)
    ledger.commit(1)
    train(ledger, 1)
    ledger.issue(2, groups(2))
    assert ledger.reopen(1) == [uid for uid, _ in groups(0)]
    counts = ledger.counts()
    assert counts.states[GroupState.COMMITTED] == 2
    assert counts.states[GroupState.RETURNED] == 4
    assert counts.trained_steps == 1
    assert ledger.issue(1, groups(1)) == {uid: 1 for uid, _ in groups(1)}
    ledger.reopen(1)  # A second reopen increments only attempts issued since the first.
    assert ledger.issue(1, [*groups(1), *groups(2)]) == {
        **{uid: 2 for uid, _ in groups(1)},
        **{uid: 1 for uid, _ in groups(2)},
    }


def test_reopen_commits_the_steps_before_the_checkpoint_and_no_later_ones(ledger: Ledger) -> None:
    """The driver died after the checkpoint was durable and before its steps were committed."""
    for step in range(3):
        train(ledger, step)
    assert ledger.reopen(2) == [uid for step in (0, 1) for uid, _ in groups(step)]
    states = ledger.counts().states
    assert (states[GroupState.COMMITTED], states[GroupState.CLAIMED], states[GroupState.RETURNED]) == (4, 0, 2)


def test_dropped_group_is_neither_trained_nor_lost_and_stays_dropped(ledger: Ledger) -> None:
    (dropped, _), (kept, _) = groups(0)
    attempts = ledger.issue(0, groups(0))
    for uid in attempts:
        ledger.record_sampled(uid, 0)
    ledger.drop(dropped, 0)
    refill = "d:0:9"
    ledger.issue(0, [(refill, "prompt9")])
    ledger.record_sampled(refill, 0)
    for uid in (kept, refill):
        ledger.record_scored(uid, 0)
    ledger.record_claimed([kept, refill])
    ledger.record_trained(0, [kept, refill])
    ledger.commit(1)
    counts = ledger.counts()
    assert (counts.states[GroupState.DROPPED], counts.states[GroupState.COMMITTED]) == (1, 2)
    assert (counts.lost, counts.duplicated) == (0, 0)
    with pytest.raises(LedgerError, match="cannot be issued"):
        ledger.issue(1, [(dropped, "prompt0")])
    with pytest.raises(LedgerError, match="expected sampled"):
        ledger.drop(kept, 0)


def test_abandoned_group_is_neither_lost_nor_issued_again_even_by_a_new_driver(ledger: Ledger) -> None:
    (poisonous, _), (sampled, _) = groups(0)
    ledger.issue(0, groups(0))
    ledger.record_sampled(sampled, 0)
    attempt = ledger.reissue(poisonous)
    with pytest.raises(StaleAttemptError):
        ledger.abandon(poisonous, 0)
    ledger.abandon(poisonous, attempt)
    ledger.abandon(sampled, 0)
    ledger.issue(0, groups(1))
    assert sorted(ledger.reopen(0)) == sorted([poisonous, sampled])
    with pytest.raises(LedgerError, match="cannot be issued"):
        ledger.issue(0, [(poisonous, "prompt0")])
    ledger.record_trained(3, [])
    counts = ledger.counts()
    assert counts.states[GroupState.ABANDONED] == 2
    assert counts.lost == 0


def test_returned_group_may_be_issued_for_another_step(ledger: Ledger) -> None:
    """Replacements issued for step 0 before the driver died are issued for step 1 in the new history."""
    ledger.issue(0, groups(0))
    ledger.issue(0, groups(1))
    assert ledger.reopen(0) == []
    train(ledger, 0)
    assert ledger.counts().lost == 0  # returned groups belong to no step
    train(ledger, 1)
    ledger.commit(2)
    counts = ledger.counts()
    assert (
        counts.states[GroupState.COMMITTED],
        counts.states[GroupState.RETURNED],
        counts.lost,
        counts.duplicated,
    ) == (4, 0, 0, 0)


@pytest.mark.parametrize(
    ("breach", "message"),
    [
        (lambda ledger: ledger.record_sampled("never", 0), "never issued"),
        (lambda ledger: ledger.record_scored("d:0:0", 0), "expected sampled"),
        (lambda ledger: ledger.record_claimed(["d:0:0"]), "cannot be claimed"),
        (lambda ledger: ledger.issue(5, groups(0)), "for step 0"),
    ],
)
def test_transition_out_of_order_is_refused(ledger: Ledger, breach, message: str) -> None:
    ledger.issue(0, groups(0))
    with pytest.raises(LedgerError, match=message):
        breach(ledger)


def test_committed_group_cannot_be_claimed(ledger: Ledger) -> None:
    uids = train(ledger, 0)
    ledger.record_claimed(uids)  # again, after a restart of the learner
    ledger.commit(1)
    with pytest.raises(LedgerError, match="expected scored or claimed, but it is committed"):
        ledger.record_claimed(uids)
    assert ledger.counts().states[GroupState.COMMITTED] == 2


def test_only_a_group_without_scores_is_issued_again(ledger: Ledger) -> None:
    (uid, _), *_ = groups(0)
    ledger.issue(0, groups(0))
    assert ledger.reissue(uid) == 1
    ledger.record_sampled(uid, 1)
    assert ledger.reissue(uid) == 2
    ledger.record_sampled(uid, 2)
    ledger.record_scored(uid, 2)
    for state in ("scored", "claimed"):
        with pytest.raises(LedgerError, match=f"expected issued or sampled, but it is {state}"):
            ledger.reissue(uid)
        ledger.record_claimed([uid])
    assert ledger.counts().retried == 2


def test_group_whose_data_were_lost_is_issued_again_for_its_step(ledger: Ledger) -> None:
    """A late result of the lost attempt is stale, and so is a second report of the loss."""
    (lost, _), (kept, _) = groups(0)
    ledger.issue(0, groups(0))
    for uid in (lost, kept):
        ledger.record_sampled(uid, 0)
        with pytest.raises(LedgerError, match="expected scored or claimed, but it is sampled"):
            ledger.withdraw(uid, 0)
        ledger.record_scored(uid, 0)
    ledger.record_claimed([lost])
    assert ledger.withdraw(lost, 0) == 1
    states = ledger.counts().states
    assert (states[GroupState.ISSUED], states[GroupState.SCORED], states[GroupState.CLAIMED]) == (1, 1, 0)
    for late in (ledger.withdraw, ledger.record_sampled):
        with pytest.raises(StaleAttemptError, match="attempt 0 has been replaced by attempt 1"):
            late(lost, 0)
    ledger.record_sampled(lost, 1)
    ledger.record_scored(lost, 1)
    ledger.record_claimed([lost, kept])
    ledger.record_trained(0, [lost, kept])
    ledger.commit(1)
    counts = ledger.counts()
    assert (counts.lost, counts.duplicated, counts.retried) == (0, 0, 1)


def test_group_that_was_trained_on_is_withdrawn_only_after_a_rewind(ledger: Ledger) -> None:
    lost, kept = train(ledger, 0)
    with pytest.raises(LedgerError, match="step 0 was trained on it"):
        ledger.withdraw(lost, 0)
    ledger.rewind(0)
    assert ledger.withdraw(lost, 0) == 1
    with pytest.raises(LedgerError, match="expected scored or claimed, but it is issued"):
        ledger.record_claimed([lost, kept])


def test_repeated_call_whose_answer_was_lost_changes_nothing(ledger: Ledger) -> None:
    (first, _), (second, _) = groups(0)
    for _ in range(2):
        assert ledger.issue(0, groups(0)) == {first: 0, second: 0}
    for call in (ledger.record_sampled, ledger.record_scored):
        for _ in range(2):
            call(first, 0)
    ledger.record_sampled(second, 0)
    for _ in range(2):
        ledger.drop(second, 0)
    ledger.record_claimed([first])
    ledger.record_scored(first, 0)  # the learner claimed it before the call was repeated
    states = ledger.counts().states
    assert (states[GroupState.CLAIMED], states[GroupState.DROPPED]) == (1, 1)
    assert ledger.counts().retried == 0


def test_groups_of_handed_out_shards_are_known_until_a_checkpoint_contains_their_step(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    for step in (0, 1):
        ledger.issue(step, groups(step))
        for uid, _ in groups(step):
            ledger.record_sampled(uid, 0)
            ledger.record_scored(uid, 0)
    (a, _), (b, _) = groups(0)
    assert ledger.newest_shard() == (-1, -1)
    for _ in range(2):  # every rank claims it
        ledger.record_shard(0, 0, 0, [b])
    ledger.record_shard(0, 1, 1, [a])
    ledger.record_shard(1, 0, 0, [uid for uid, _ in groups(1)])
    ledger.close()

    ledger = Ledger(path)
    assert ledger.recorded_shards(0) == [(0, [b]), (1, [a])]
    assert ledger.newest_shard() == (1, 0)
    assert ledger.counts().states[GroupState.CLAIMED] == 4
    ledger.forget_shards(0, 1)
    assert ledger.recorded_shards(0) == [(0, [b])]
    ledger.record_trained(0, [a, b])
    ledger.commit(1)
    assert ledger.recorded_shards(0) == []
    assert ledger.recorded_shards(1) == [(0, [uid for uid, _ in groups(1)])]
    ledger.reopen(1)
    assert ledger.newest_shard() == (-1, -1)


def test_shard_of_a_group_without_scores_is_refused_and_not_recorded(ledger: Ledger) -> None:
    ledger.issue(0, groups(0))
    with pytest.raises(LedgerError, match="cannot be claimed"):
        ledger.record_shard(0, 0, 0, [uid for uid, _ in groups(0)])
    assert ledger.recorded_shards(0) == []


def test_reading_a_missing_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no ledger at .*; check that the path is a run directory"):
        Ledger(tmp_path / "nowhere.sqlite", read_only=True)


def test_records_survive_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    program = f"""
import sys
from rlad.ledger import Ledger
ledger = Ledger({str(path)!r})
ledger.issue(0, [("d:0:0", "p")])
ledger.record_sampled("d:0:0", 0)
print("recorded", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "recorded"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert Ledger(path, read_only=True).counts().states[GroupState.SAMPLED] == 1
