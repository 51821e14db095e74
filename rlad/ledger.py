"""The ledger: what happened to every group of prompts, and the proof that each was trained on exactly once in the history that survives.

A group is `issued` to the rollout pool, `sampled`, `scored` (by teacher and verifier), `claimed` by the learner for a training step, and `committed`
when a durable checkpoint contains that step. Step s trains on weights of version s and makes version s + 1; a checkpoint at step c contains steps 0 .. c - 1.
With dynamic sampling a sampled group that has nothing to teach is `dropped`, and another takes its place in the step.

Two ways back, both explicit:

- `rewind(c)`: the learner restarted from checkpoint c while the batches are still held. Training since then never happened; the same groups are claimed again.
- `reopen(c)`: the driver itself died and the batches with it. Groups of step c and later are `returned`: to be issued again, for whichever step their turn
  then falls into, under a new attempt number, which makes any late answer to the old attempt stale.

Kept in SQLite: one writer (the broker), any number of readers, and nothing is lost when a process is killed between two statements.
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
    ISSUED = "issued"
    SAMPLED = "sampled"
    SCORED = "scored"
    CLAIMED = "claimed"
    COMMITTED = "committed"
    DROPPED = "dropped"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCounts:
    """Groups by state, and the three figures that tell whether the history is whole.

    Attributes:
        states: number of groups in each state.
        trained_steps: steps of the surviving history.
        lost: groups of trained steps that were not trained on. Must be 0.
        duplicated: groups trained on more than once. Must be 0.
        retried: attempts beyond the first, over all groups.
    """

    states: dict[GroupState, int]
    trained_steps: int
    lost: int
    duplicated: int
    retried: int

    def as_dict(self) -> dict[str, int]:
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
    """One run's ledger. Not thread-safe: it has one owner."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open or create the ledger at `path`.

        Raises:
            RunDirectoryError: `read_only` and there is no ledger.
        """
        if read_only and not Path(path).is_file():
            raise RunDirectoryError(f"no ledger at {path}: is that a run directory?")
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA busy_timeout=30000")
        if not read_only:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(
                "PRAGMA synchronous=NORMAL"
            )  # survives any killed process; `commit` also survives a power cut
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def issue(self, step: int, groups: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Issue groups for a step: (uid, prompt id) each. Returns the attempt number of each uid; a group that was returned keeps its number.

        Raises:
            LedgerError: a uid was issued before, and not returned.
        """
        with self._connection as transaction, closing(transaction.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            attempts: dict[str, int] = {}
            for uid, prompt_id in groups:
                known = cursor.execute("SELECT step, attempt, state FROM groups WHERE uid = ?", (uid,)).fetchone()
                if known is not None and known[2] != GroupState.RETURNED:
                    raise LedgerError(
                        f"group {uid} cannot be issued for step {step}: it is {known[2]} for step {known[0]}"
                    )
                attempts[uid] = known[1] if known is not None else 0
                cursor.execute(
                    "INSERT INTO groups (uid, prompt_id, step, attempt, state) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (uid) DO UPDATE SET step = excluded.step, state = excluded.state",
                    (uid, prompt_id, step, attempts[uid], GroupState.ISSUED),
                )
        return attempts

    def reissue(self, uid: str) -> int:
        """Give up on the current attempt of a group that is not scored yet. Returns the new attempt number."""
        _, attempt, state = self._row(uid)
        if state not in (GroupState.ISSUED, GroupState.SAMPLED):
            raise LedgerError(f"group {uid} cannot be issued again: it is {state}")
        self._connection.execute(
            "UPDATE groups SET attempt = ?, state = ? WHERE uid = ?", (attempt + 1, GroupState.ISSUED, uid)
        )
        return attempt + 1

    def record_sampled(self, uid: str, attempt: int) -> None:
        self._advance(uid, attempt, GroupState.ISSUED, GroupState.SAMPLED)

    def record_scored(self, uid: str, attempt: int) -> None:
        self._advance(uid, attempt, GroupState.SAMPLED, GroupState.SCORED)

    def drop(self, uid: str, attempt: int) -> None:
        """The group is sampled and will not be trained on: it leaves its step for good."""
        self._advance(uid, attempt, GroupState.SAMPLED, GroupState.DROPPED)

    def record_claimed(self, uids: Iterable[str]) -> None:
        """The learner has claimed these groups. Claiming again after a restart is allowed."""
        with self._connection as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            for uid in uids:
                _, _, state = self._row(uid)
                if state not in (GroupState.SCORED, GroupState.CLAIMED):
                    raise LedgerError(f"group {uid} cannot be claimed: it is {state}")
                transaction.execute("UPDATE groups SET state = ? WHERE uid = ?", (GroupState.CLAIMED, uid))

    def record_trained(self, step: int, uids: Iterable[str]) -> None:
        """The learner has applied every update of `step`, made of these groups."""
        with self._connection as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            transaction.executemany("INSERT INTO trained (uid, step) VALUES (?, ?)", [(uid, step) for uid in uids])

    def commit(self, checkpoint: int) -> None:
        """A durable checkpoint holds the steps before `checkpoint`: their groups are done for ever."""
        self._connection.execute(
            "UPDATE groups SET state = ? WHERE step < ? AND state = ?",
            (GroupState.COMMITTED, checkpoint, GroupState.CLAIMED),
        )
        self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()

    def rewind(self, checkpoint: int) -> None:
        """Forget the training of step `checkpoint` and later: the learner restarted before them. Claims stay, the data is still held."""
        self._connection.execute("DELETE FROM trained WHERE step >= ?", (checkpoint,))

    def reopen(self, checkpoint: int) -> list[str]:
        """After the death of the driver: commit what the checkpoint holds; return everything later, to be issued again under a new attempt.

        Returns:
            The groups that the steps before `checkpoint` used up, dropped ones included. They need not be the first of the order: a group that took a
            dropped one's place may come behind those of a step that was opened ahead.
        """
        self.rewind(checkpoint)
        self.commit(checkpoint)
        self._connection.execute(
            "UPDATE groups SET state = ?, attempt = attempt + 1 WHERE step >= ? AND state != ?",
            (GroupState.RETURNED, checkpoint, GroupState.RETURNED),
        )
        return [
            uid
            for (uid,) in self._connection.execute("SELECT uid FROM groups WHERE state != ?", (GroupState.RETURNED,))
        ]

    def counts(self) -> LedgerCounts:
        rows = dict(self._connection.execute("SELECT state, COUNT(*) FROM groups GROUP BY state").fetchall())
        trained_steps, duplicated, retried = (
            self._scalar("SELECT COUNT(DISTINCT step) FROM trained"),
            self._scalar("SELECT COUNT(*) FROM (SELECT uid FROM trained GROUP BY uid HAVING COUNT(*) > 1)"),
            self._scalar("SELECT COALESCE(SUM(attempt), 0) FROM groups"),
        )
        lost = self._scalar(
            "SELECT COUNT(*) FROM groups WHERE step <= (SELECT COALESCE(MAX(step), -1) FROM trained) AND state NOT IN (?, ?) "
            "AND uid NOT IN (SELECT uid FROM trained)",
            GroupState.DROPPED,
            GroupState.RETURNED,
        )
        states = {state: rows.get(state.value, 0) for state in GroupState}
        return LedgerCounts(
            states=states, trained_steps=trained_steps, lost=lost, duplicated=duplicated, retried=retried
        )

    def _advance(self, uid: str, attempt: int, before: GroupState, after: GroupState) -> None:
        _, current, state = self._row(uid)
        if attempt != current:
            raise StaleAttemptError(f"group {uid}: attempt {attempt} has been replaced by attempt {current}")
        if state != before:
            raise LedgerError(f"group {uid} cannot become {after}: it is {state}, expected {before}")
        self._connection.execute("UPDATE groups SET state = ? WHERE uid = ?", (after, uid))

    def _row(self, uid: str) -> tuple[int, int, GroupState]:
        row = self._connection.execute("SELECT step, attempt, state FROM groups WHERE uid = ?", (uid,)).fetchone()
        if row is None:
            raise LedgerError(f"group {uid} was never issued")
        return row[0], row[1], GroupState(row[2])

    def _scalar(self, query: str, *values: str) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])
