"""Ledger against a slow model of it: random operations, rewinds, restarts and kills give the same state and counts."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rlad.errors import LedgerError, StaleAttemptError
from rlad.ledger import GroupState, Ledger

from .memory_folder import memory_folder

UIDS = [f"data:0:{index}" for index in range(5)]
uids, steps = st.sampled_from(UIDS), st.integers(0, 3)


@dataclass
class Group:
    step: int
    attempt: int
    state: GroupState


class LedgerMachine(RuleBasedStateMachine):
    """The model keeps each group's step, attempt and state, and a list of what was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = memory_folder()
        self.number = 0
        self.ledger = Ledger(self.path)
        self.groups: dict[str, Group] = {}
        self.trained: list[tuple[str, int]] = []

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number}" / "ledger.sqlite" if self.number else self.folder / "ledger.sqlite"

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    def expect(self, allowed: bool, operation: Any, *arguments: Any, error: type[LedgerError] = LedgerError) -> bool:
        """Carry out an operation. It must raise exactly if the model does not allow it, and then change nothing."""
        try:
            operation(*arguments)
        except error:
            assert not allowed
            return False
        assert allowed
        return True

    @rule(uid=uids, step=steps)
    def issue(self, uid: str, step: int) -> None:
        known = self.groups.get(uid)
        # A driver repeats the call if the broker was lost before it answered.
        is_repeated = known is not None and (known.step, known.state) == (step, GroupState.ISSUED)
        allowed = known is None or known.state == GroupState.RETURNED or is_repeated
        if self.expect(allowed, self.ledger.issue, step, [(uid, f"prompt of {uid}")]):
            self.groups[uid] = Group(step, known.attempt if known else 0, GroupState.ISSUED)

    @rule(uid=uids)
    def reissue(self, uid: str) -> None:
        group = self.groups.get(uid)
        allowed = group is not None and group.state in (GroupState.ISSUED, GroupState.SAMPLED)
        if self.expect(allowed, self.ledger.reissue, uid) and group is not None:
            group.attempt, group.state = group.attempt + 1, GroupState.ISSUED

    @rule(
        uid=uids,
        late=st.sampled_from([0, 0, 0, 1]),
        move=st.sampled_from(["record_sampled", "record_scored", "record_scored", "drop", "abandon"]),
    )
    def advance(self, uid: str, late: int, move: str) -> None:
        before, after = {
            "record_sampled": ((GroupState.ISSUED,), GroupState.SAMPLED),
            "record_scored": ((GroupState.SAMPLED,), GroupState.SCORED),
            "drop": ((GroupState.SAMPLED,), GroupState.DROPPED),
            "abandon": ((GroupState.ISSUED, GroupState.SAMPLED), GroupState.ABANDONED),
        }[move]
        group = self.groups.get(uid)
        attempt = (group.attempt if group else 0) - late
        allowed = group is not None and not late and group.state in before
        stale = group is not None and late
        if self.expect(
            allowed, getattr(self.ledger, move), uid, attempt, error=StaleAttemptError if stale else LedgerError
        ):
            assert group is not None
            group.state = after

    @rule(chosen=st.lists(uids, unique=True, min_size=1, max_size=3))
    def claim(self, chosen: list[str]) -> None:
        allowed = all(
            uid in self.groups and self.groups[uid].state in (GroupState.SCORED, GroupState.CLAIMED) for uid in chosen
        )
        if self.expect(allowed, self.ledger.record_claimed, chosen):
            for uid in chosen:
                self.groups[uid].state = GroupState.CLAIMED

    @rule(step=steps)
    def train(self, step: int) -> None:
        claimed = [
            uid
            for uid, group in self.groups.items()
            if group.step == step and group.state == GroupState.CLAIMED and (uid, step) not in self.trained
        ]
        self.ledger.record_trained(step, claimed)
        self.trained += [(uid, step) for uid in claimed]

    @rule(checkpoint=steps)
    def commit(self, checkpoint: int) -> None:
        self.ledger.commit(checkpoint)
        self.model_commit(checkpoint)

    def model_commit(self, checkpoint: int) -> None:
        for group in self.groups.values():
            if group.step < checkpoint and group.state == GroupState.CLAIMED:
                group.state = GroupState.COMMITTED

    @rule(checkpoint=steps)
    def rewind(self, checkpoint: int) -> None:
        self.ledger.rewind(checkpoint)
        self.trained = [(uid, step) for uid, step in self.trained if step < checkpoint]

    @rule(checkpoint=steps)
    def reopen(self, checkpoint: int) -> None:
        allowed = max((step + 1 for _, step in self.trained), default=0) >= checkpoint
        if not self.expect(allowed, self.ledger.reopen, checkpoint):
            return
        self.trained = [(uid, step) for uid, step in self.trained if step < checkpoint]
        self.model_commit(checkpoint)
        for group in self.groups.values():
            if group.step >= checkpoint and group.state not in (GroupState.RETURNED, GroupState.ABANDONED):
                group.state, group.attempt = GroupState.RETURNED, group.attempt + 1

    @rule()
    def close_and_open(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path)

    @rule()
    def kill_and_open(self) -> None:
        """Continue on what is on the disk now, as after a kill: the old ledger was not closed."""
        copied = self.path.parent
        self.number += 1
        self.path.parent.mkdir()
        for file in copied.glob("ledger.sqlite*"):
            shutil.copy(file, self.path.parent / file.name)
        old, self.ledger = self.ledger, Ledger(self.path)
        old.close()

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        counts = self.ledger.counts()
        states = Counter(group.state for group in self.groups.values())
        assert counts.states == {state: states[state] for state in GroupState}
        assert counts.retried == sum(group.attempt for group in self.groups.values())
        assert counts.trained_steps == len({step for _, step in self.trained})
        times = Counter(uid for uid, _ in self.trained)
        assert counts.duplicated == sum(number > 1 for number in times.values())
        last = max((step for _, step in self.trained), default=-1)
        excused = (GroupState.DROPPED, GroupState.ABANDONED, GroupState.RETURNED)
        assert counts.lost == sum(
            group.step <= last and group.state not in excused and uid not in times for uid, group in self.groups.items()
        )

    @invariant()
    def a_reader_sees_the_same(self) -> None:
        reader = Ledger(self.path, read_only=True)
        try:
            assert reader.counts() == self.ledger.counts()
        finally:
            reader.close()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
