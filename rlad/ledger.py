"""Ledger of the state of every group, and proof that each group was trained on exactly once in the surviving history.

A group is `issued` to the rollout pool, `sampled`, `scored` (by teacher and verifier), `claimed` by the learner for a
step, and `committed` once a durable checkpoint contains that step. Step s trains on policy version s and produces
version s + 1; a checkpoint at step c contains steps 0 .. c - 1. With dynamic sampling, a sampled group whose rewards
are all equal is `dropped`, and another group replaces it in the step. A group that failed on every attempt is
`abandoned`: another group replaces it in the same way, and it is never issued again.

Two operations undo progress:

- `rewind(c)`: the learner restarted from checkpoint c, and the driver still holds the batches. The ledger forgets the
  training of step c and later; the same groups are claimed again.
- `reopen(c)`: the driver died, and the batches with it. Groups of step c and later become `returned`. They are issued
  again, possibly for another step, with a new attempt number, which makes late results of the old attempt stale.

The ledger is an SQLite database with one writer (the broker) and any number of readers. Killing a process between two
statements loses nothing.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rlad.errors import LedgerError, RunDirectoryError, StaleAttemptError


class GroupState(enum.StrEnum):
    """State of a group; see the module for the transitions."""

    ISSUED = "issued"
    SAMPLED = "sampled"
    SCORED = "scored"
    CLAIMED = "claimed"
    COMMITTED = "committed"
    DROPPED = "dropped"
    ABANDONED = "abandoned"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCounts:
    """Number of groups in each state, and the figures that show whether the history is complete.

    Attributes:
        states: Number of groups in each state.
        trained_steps: Number of steps in the surviving history.
        lost: Number of groups of trained steps that were not trained on. Must be 0.
        duplicated: Number of groups that were trained on more than once. Must be 0.
        retried: Number of attempts beyond the first, summed over all groups.
    """

    states: dict[GroupState, int]
    trained_steps: int
    lost: int
    duplicated: int
    retried: int

    def as_dict(self) -> dict[str, int]:
        """Return all figures in one flat mapping, states by name first."""
        states = {state.value: count for state, count in self.states.items()}
        return {
            **states,
            "trained_steps": self.trained_steps,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "retried": self.retried,
        }


_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    uid TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL,
    step INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS groups_by_step ON groups (step);
CREATE TABLE IF NOT EXISTS trained (uid TEXT NOT NULL, step INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS trained_by_step ON trained (step);
"""


class Ledger:
    """Ledger of one run. Not thread-safe."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open or create the ledger at `path`.

        Raises:
            RunDirectoryError: `read_only` is set and no ledger exists.
        """
        if read_only and not Path(path).is_file():
            raise RunDirectoryError(f"no ledger at {path}; check that the path is a run directory")
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA busy_timeout=30000")
        if not read_only:
            self._connection.execute("PRAGMA journal_mode=WAL")
            # Data survives a killed process. `commit` also makes it survive a power failure.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def issue(self, step: int, groups: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Issue groups for a step.

        Args:
            step: The step that will train on the groups.
            groups: Pairs (uid, prompt id).

        Returns:
            Attempt number of each uid. A returned group keeps the number that `reopen` assigned.

        Raises:
            LedgerError: A uid was issued before and is not `returned`.
        """
        with self._connection as transaction, closing(transaction.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            attempts: dict[str, int] = {}
            for uid, prompt_id in groups:
                known = cursor.execute("SELECT step, attempt, state FROM groups WHERE uid = ?", (uid,)).fetchone()
                if known is not None and known[2] != GroupState.RETURNED:
                    raise LedgerError(
                        f"group {uid} cannot be issued for step {step}: expected a new or returned group, "
                        f"but it is {known[2]} for step {known[0]}"
                    )
                attempts[uid] = known[1] if known is not None else 0
                cursor.execute(
                    "INSERT INTO groups (uid, prompt_id, step, attempt, state) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (uid) DO UPDATE SET step = excluded.step, state = excluded.state",
                    (uid, prompt_id, step, attempts[uid], GroupState.ISSUED),
                )
        return attempts

    def reissue(self, uid: str) -> int:
        """Start a new attempt of a group that is not scored yet, and return its attempt number.

        Raises:
            LedgerError: The group is neither `issued` nor `sampled`.
        """
        attempt, state = self._row(uid)
        if state not in (GroupState.ISSUED, GroupState.SAMPLED):
            raise LedgerError(f"group {uid} cannot be issued again: expected issued or sampled, but it is {state}")
        self._connection.execute(
            "UPDATE groups SET attempt = ?, state = ? WHERE uid = ?", (attempt + 1, GroupState.ISSUED, uid)
        )
        return attempt + 1

    def record_sampled(self, uid: str, attempt: int) -> None:
        """Record that the responses of an issued group are sampled.

        Raises:
            StaleAttemptError: The attempt was replaced.
            LedgerError: The group is not `issued`.
        """
        self._advance(uid, attempt, GroupState.ISSUED, GroupState.SAMPLED)

    def record_scored(self, uid: str, attempt: int) -> None:
        """Record that a sampled group has its verdicts and scores.

        Raises:
            StaleAttemptError: The attempt was replaced.
            LedgerError: The group is not `sampled`.
        """
        self._advance(uid, attempt, GroupState.SAMPLED, GroupState.SCORED)

    def drop(self, uid: str, attempt: int) -> None:
        """Remove a sampled group from its step permanently. It is not trained on.

        Raises:
            StaleAttemptError: The attempt was replaced.
            LedgerError: The group is not `sampled`.
        """
        self._advance(uid, attempt, GroupState.SAMPLED, GroupState.DROPPED)

    def abandon(self, uid: str, attempt: int) -> None:
        """Give up a group that could not be sampled and scored. It is never issued again, after a `reopen` neither.

        Raises:
            StaleAttemptError: The attempt was replaced.
            LedgerError: The group is neither `issued` nor `sampled`.
        """
        _, state = self._row(uid)
        before = GroupState.SAMPLED if state == GroupState.SAMPLED else GroupState.ISSUED
        self._advance(uid, attempt, before, GroupState.ABANDONED)

    def record_claimed(self, uids: Iterable[str]) -> None:
        """Record that the learner claimed groups. Claiming again after a restart is allowed.

        Raises:
            LedgerError: A group is neither `scored` nor `claimed`.
        """
        with self._connection as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            for uid in uids:
                _, state = self._row(uid)
                if state not in (GroupState.SCORED, GroupState.CLAIMED):
                    raise LedgerError(f"group {uid} cannot be claimed: expected scored or claimed, but it is {state}")
                transaction.execute("UPDATE groups SET state = ? WHERE uid = ?", (GroupState.CLAIMED, uid))

    def record_trained(self, step: int, uids: Iterable[str]) -> None:
        """Record that the learner applied every update of `step`, which consists of these groups."""
        with self._connection as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            transaction.executemany("INSERT INTO trained (uid, step) VALUES (?, ?)", [(uid, step) for uid in uids])

    def commit(self, checkpoint: int) -> None:
        """Commit the groups of all steps before `checkpoint`, which a durable checkpoint contains."""
        self._connection.execute(
            "UPDATE groups SET state = ? WHERE step < ? AND state = ?",
            (GroupState.COMMITTED, checkpoint, GroupState.CLAIMED),
        )
        self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()

    def rewind(self, checkpoint: int) -> None:
        """Forget the training of step `checkpoint` and later, after a restart of the learner. Claims are kept."""
        self._connection.execute("DELETE FROM trained WHERE step >= ?", (checkpoint,))

    def reopen(self, checkpoint: int) -> list[str]:
        """Commit the steps before `checkpoint` and return all later groups, after a restart of the driver.

        Returned groups are issued again with a new attempt number.

        Returns:
            Uids of the groups that the steps before `checkpoint` consumed, dropped groups included, and of all
            abandoned groups. They need not be the first groups of the prompt order: a replacement of a dropped group
            can come after groups of a later step that was opened early.
        """
        self.rewind(checkpoint)
        self.commit(checkpoint)
        self._connection.execute(
            "UPDATE groups SET state = ?, attempt = attempt + 1 WHERE step >= ? AND state NOT IN (?, ?)",
            (GroupState.RETURNED, checkpoint, GroupState.RETURNED, GroupState.ABANDONED),
        )
        return [
            uid
            for (uid,) in self._connection.execute("SELECT uid FROM groups WHERE state != ?", (GroupState.RETURNED,))
        ]

    def counts(self) -> LedgerCounts:
        """Count groups by state, and lost, duplicated and retried groups."""
        rows = dict(self._connection.execute("SELECT state, COUNT(*) FROM groups GROUP BY state").fetchall())
        trained_steps, duplicated, retried = (
            self._scalar("SELECT COUNT(DISTINCT step) FROM trained"),
            self._scalar("SELECT COUNT(*) FROM (SELECT uid FROM trained GROUP BY uid HAVING COUNT(*) > 1)"),
            self._scalar("SELECT COALESCE(SUM(attempt), 0) FROM groups"),
        )
        lost = self._scalar(
            "SELECT COUNT(*) FROM groups "
            "WHERE step <= (SELECT COALESCE(MAX(step), -1) FROM trained) AND state NOT IN (?, ?, ?) "
            "AND uid NOT IN (SELECT uid FROM trained)",
            GroupState.DROPPED,
            GroupState.ABANDONED,
            GroupState.RETURNED,
        )
        states = {state: rows.get(state.value, 0) for state in GroupState}
        return LedgerCounts(
            states=states, trained_steps=trained_steps, lost=lost, duplicated=duplicated, retried=retried
        )

    def _advance(self, uid: str, attempt: int, before: GroupState, after: GroupState) -> None:
        current, state = self._row(uid)
        if attempt != current:
            raise StaleAttemptError(f"group {uid}: attempt {attempt} has been replaced by attempt {current}")
        if state != before:
            raise LedgerError(f"group {uid} cannot become {after}: expected {before}, but it is {state}")
        self._connection.execute("UPDATE groups SET state = ? WHERE uid = ?", (after, uid))

    def _row(self, uid: str) -> tuple[int, GroupState]:
        row = self._connection.execute("SELECT attempt, state FROM groups WHERE uid = ?", (uid,)).fetchone()
        if row is None:
            raise LedgerError(f"the ledger has no group {uid}: it was never issued")
        return row[0], GroupState(row[1])

    def _scalar(self, query: str, *values: str) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])
