"""Ledger of the state of every group, and proof that each group was trained on exactly once in the surviving history.

A group is `issued` to the rollout pool, `sampled`, `scored` (by teacher and verifier), `claimed` by the learner for a
step, and `committed` once a durable checkpoint contains that step. Step s trains on policy version s and produces
version s + 1; a checkpoint at step c contains steps 0 .. c - 1. With dynamic sampling, a sampled group whose rewards
are all equal is `dropped`, and another group replaces it in the step. A group that failed on every attempt is
`abandoned`: another group replaces it in the same way, and it is never issued again.

Three operations undo progress:

- `withdraw(uid)`: the data of a scored group were lost with their node. The group is issued again for the same step,
  with a new attempt number.
- `rewind(c)`: the learner restarted from checkpoint c, and the driver still holds the batches. The ledger forgets the
  training of step c and later; the same groups are claimed again.
- `reopen(c)`: the driver died, and the batches with it. Groups of step c and later become `returned`. They are issued
  again, possibly for another step, with a new attempt number, which makes late results of the old attempt stale.

The ledger also records the groups of each batch shard until a checkpoint contains the step: a broker that is restarted
forms the same shards again. A call that is repeated because its answer was lost has no further effect.

The ledger is an SQLite database with one writer (the broker) and any number of readers. Killing a process between two
statements loses nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rlad.errors import LedgerError, StaleAttemptError
from rlad.ledger_file import LedgerFile


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


class Ledger:
    """Ledger of one run. Not thread-safe."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open or create the ledger at `path`, and verify it.

        Raises:
            RunDirectoryError: `read_only` is set and no ledger exists.
            CorruptFileError: The file is damaged.
        """
        self._file = LedgerFile(Path(path), read_only=read_only)

    def close(self) -> None:
        """Seal the file and close it."""
        self._file.close()

    def seal(self) -> None:
        """Write the checksum of the whole file, which is valid until the next change."""
        self._file.seal()

    def batch(self) -> AbstractContextManager[None]:
        """Write all changes of a block to the disk at once. Blocks may overlap, as those of coroutines do."""
        return self._file.batch()

    def issue(self, step: int, groups: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Issue groups for a step.

        Args:
            step: The step that will train on the groups.
            groups: Pairs (uid, prompt id).

        Returns:
            Attempt number of each uid. A returned group keeps the number that `reopen` assigned.

        Raises:
            LedgerError: A uid was issued before, and is neither `returned` nor still `issued` for this step.
        """
        with self._file.transaction() as cursor:
            attempts: dict[str, int] = {}
            for uid, prompt_id in groups:
                known = cursor.execute("SELECT step, attempt, state FROM groups WHERE uid = ?", (uid,)).fetchone()
                is_repeated = known is not None and (known[0], known[2]) == (step, GroupState.ISSUED)
                if known is not None and known[2] != GroupState.RETURNED and not is_repeated:
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
        return self._next_attempt(uid, attempt)

    def withdraw(self, uid: str, attempt: int) -> int:
        """Start a new attempt of a scored group whose data are lost, for the same step. Return its attempt number.

        Raises:
            StaleAttemptError: The attempt was replaced.
            LedgerError: The group is neither `scored` nor `claimed`, or is trained on: `rewind` first.
        """
        state = self._require_attempt(uid, attempt)
        if state not in (GroupState.SCORED, GroupState.CLAIMED):
            raise LedgerError(f"group {uid} cannot be withdrawn: expected scored or claimed, but it is {state}")
        trained = self._file.query("SELECT step FROM trained WHERE uid = ?", (uid,))
        if trained:
            raise LedgerError(f"group {uid} cannot be withdrawn: step {trained[0][0]} was trained on it")
        return self._next_attempt(uid, attempt)

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
        if self._require_attempt(uid, attempt) not in (GroupState.CLAIMED, GroupState.COMMITTED):  # else it is repeated
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
        with self._file.transaction() as transaction:
            for uid in uids:
                _, state = self._row(uid)
                if state not in (GroupState.SCORED, GroupState.CLAIMED):
                    raise LedgerError(f"group {uid} cannot be claimed: expected scored or claimed, but it is {state}")
                transaction.execute("UPDATE groups SET state = ? WHERE uid = ?", (GroupState.CLAIMED, uid))

    def record_shard(self, step: int, shard: int, update: int, uids: Sequence[str]) -> None:
        """Record the groups of a batch shard before a rank gets it, and that they are claimed. Repeating is allowed.

        Args:
            step: The step.
            shard: Number of the shard within the step.
            update: Number of the optimizer update within the step.
            uids: Groups of the shard, those without a trainable response included.

        Raises:
            LedgerError: A group is neither `scored` nor `claimed`.
        """
        with self._file.transaction() as transaction:
            self.record_claimed(uids)
            known = transaction.execute("SELECT 1 FROM shards WHERE step = ? AND shard = ?", (step, shard)).fetchone()
            if known is None:
                transaction.executemany(
                    "INSERT INTO shards (step, shard, update_number, uid) VALUES (?, ?, ?, ?)",
                    [(step, shard, update, uid) for uid in uids],
                )

    def recorded_shards(self, step: int) -> list[tuple[int, list[str]]]:
        """Return the update and the groups of each recorded batch shard of a step, in order."""
        shards: dict[int, tuple[int, list[str]]] = {}
        rows = self._file.query(
            "SELECT shard, update_number, uid FROM shards WHERE step = ? ORDER BY shard, rowid", (step,)
        )
        for shard, update, uid in rows:
            shards.setdefault(shard, (update, []))[1].append(uid)
        return list(shards.values())

    def newest_shard(self) -> tuple[int, int]:
        """Return step and number of the newest recorded batch shard; (-1, -1) if there is none."""
        rows = self._file.query("SELECT step, shard FROM shards ORDER BY step DESC, shard DESC LIMIT 1")
        return (int(rows[0][0]), int(rows[0][1])) if rows else (-1, -1)

    def forget_shards(self, step: int, first: int) -> None:
        """Forget the batch shards of a step from number `first` on. Their groups stay claimed."""
        self._change("DELETE FROM shards WHERE step = ? AND shard >= ?", step, first)

    def is_trained(self, step: int) -> bool:
        """Return whether the surviving history contains a step."""
        return bool(self._file.query("SELECT 1 FROM trained WHERE step = ? LIMIT 1", (step,)))

    def attempt(self, uid: str) -> int:
        """Return the present attempt number of a group.

        Raises:
            LedgerError: The group was never issued.
        """
        return self._row(uid)[0]

    def record_trained(self, step: int, uids: Iterable[str]) -> None:
        """Record that the learner applied every update of `step`, which consists of these groups."""
        with self._file.transaction() as transaction:
            transaction.executemany("INSERT INTO trained (uid, step) VALUES (?, ?)", [(uid, step) for uid in uids])

    def commit(self, checkpoint: int) -> None:
        """Commit the groups of all steps before `checkpoint`, which a durable checkpoint contains."""
        with self._file.transaction():
            self._change(
                "UPDATE groups SET state = ? WHERE step < ? AND state = ?",
                GroupState.COMMITTED,
                checkpoint,
                GroupState.CLAIMED,
            )
            self._change("DELETE FROM shards WHERE step < ?", checkpoint)
        self._file.sync()

    def rewind(self, checkpoint: int) -> None:
        """Forget the training of step `checkpoint` and later, after a restart of the learner. Claims are kept."""
        self._change("DELETE FROM trained WHERE step >= ?", checkpoint)

    def reopen(self, checkpoint: int) -> list[str]:
        """Commit the steps before `checkpoint` and return all later groups, after a restart of the driver.

        Returned groups are issued again with a new attempt number.

        Raises:
            LedgerError: The ledger is older than the checkpoint.

        Returns:
            Uids of the groups that the steps before `checkpoint` consumed, dropped groups included, and of all
            abandoned groups. They need not be the first groups of the prompt order: a replacement of a dropped group
            can come after groups of a later step that was opened early.
        """
        [(trained,)] = self._file.query("SELECT COALESCE(MAX(step), -1) + 1 FROM trained")
        if trained < checkpoint:
            raise LedgerError(
                f"the checkpoint has {checkpoint} steps, but the ledger only {trained}: it is an older copy. Delete "
                f"the checkpoints with more than {trained} steps, or restore the ledger that belongs to the checkpoint"
            )
        with self._file.transaction():
            self.rewind(checkpoint)
            self.commit(checkpoint)
            self._change(
                "UPDATE groups SET state = ?, attempt = attempt + 1 WHERE step >= ? AND state NOT IN (?, ?)",
                GroupState.RETURNED,
                checkpoint,
                GroupState.RETURNED,
                GroupState.ABANDONED,
            )
            self._change("DELETE FROM shards")
        return [uid for (uid,) in self._file.query("SELECT uid FROM groups WHERE state != ?", (GroupState.RETURNED,))]

    def counts(self) -> LedgerCounts:
        """Count groups by state, and lost, duplicated and retried groups."""
        rows = dict(self._file.query("SELECT state, COUNT(*) FROM groups GROUP BY state"))
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
        state = self._require_attempt(uid, attempt)
        if state == after:  # repeated, because the answer was lost
            return
        if state != before:
            raise LedgerError(f"group {uid} cannot become {after}: expected {before}, but it is {state}")
        self._change("UPDATE groups SET state = ? WHERE uid = ?", after, uid)

    def _require_attempt(self, uid: str, attempt: int) -> GroupState:
        """Return the state of a group, if this is its present attempt."""
        current, state = self._row(uid)
        if attempt != current:
            raise StaleAttemptError(f"group {uid}: attempt {attempt} has been replaced by attempt {current}")
        return state

    def _next_attempt(self, uid: str, attempt: int) -> int:
        self._change("UPDATE groups SET attempt = ?, state = ? WHERE uid = ?", attempt + 1, GroupState.ISSUED, uid)
        return attempt + 1

    def _change(self, statement: str, *values: object) -> None:
        with self._file.transaction() as transaction:
            transaction.execute(statement, values)

    def _row(self, uid: str) -> tuple[int, GroupState]:
        rows = self._file.query("SELECT attempt, state FROM groups WHERE uid = ?", (uid,))
        if not rows:
            raise LedgerError(f"the ledger has no group {uid}: it was never issued")
        [(attempt, state)] = rows
        return attempt, GroupState(state)

    def _scalar(self, query: str, *values: str) -> int:
        return int(self._file.query(query, values)[0][0])
