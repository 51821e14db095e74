"""File of the ledger: an SQLite database in which no flipped bit goes unnoticed.

- Triggers keep the sum of the digests of all rows, in the transaction that changes a row. A row that is changed, lost
  or added outside of the ledger changes the sum.
- SQLite's own integrity check covers the structure of the file: pages, indices, and order.
- A seal, the SHA-256 of the whole file in `ledger.sqlite.sha256`, exists while nothing is written: after `seal()` and
  `close()`, until the next transaction. It also covers bytes that hold nothing.

The journal is a rollback journal: unlike a write-ahead log, it works on shared storage, and the file is whole after
every transaction. A killed process loses no transaction. A power failure can damage the file; the state at the last
`sync` is kept next to it in `ledger.sqlite.backup`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rlad.errors import CorruptFileError, LedgerError, RunDirectoryError, StorageError
from rlad.integrity.durable import sync_directory, sync_file, write_atomically
from rlad.integrity.manifest import sha256_of

_SCHEMA_VERSION = 3
_BUSY_TIMEOUT_S = 30
_REMEDY = (
    "Delete ledger.sqlite.sha256 and replace ledger.sqlite by ledger.sqlite.backup, which is its state at the last "
    "checkpoint, or start another run"
)
_FREE_SPACE = "What was recorded before is unchanged; free space or repair the disk, and continue the run with --resume"
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}

_TABLES = """
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
CREATE TABLE IF NOT EXISTS shards (
    step INTEGER NOT NULL, shard INTEGER NOT NULL, update_number INTEGER NOT NULL, uid TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS shards_by_step ON shards (step, shard);
CREATE TABLE IF NOT EXISTS digest (only INTEGER PRIMARY KEY CHECK (only = 0), sum TEXT NOT NULL);
"""
_COLUMNS = {
    "groups": ("uid", "prompt_id", "step", "attempt", "state"),
    "trained": ("uid", "step"),
    "shards": ("step", "shard", "update_number", "uid"),
}
_DIGEST_BITS = 128


class LedgerFile:
    """Connection to the database of a ledger. Not thread-safe; one writer, any number of readers."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Open or create the database, and verify it.

        Raises:
            RunDirectoryError: `read_only` is set and the file does not exist.
            CorruptFileError: The file is damaged, or is not a ledger.
        """
        if read_only and not path.is_file():
            raise RunDirectoryError(f"no ledger at {path}; check that the path is a run directory")
        if path.is_symlink():
            raise CorruptFileError(f"{path} is a symbolic link; links are not followed here. Put the file in its place")
        self._path, self._read_only = path, read_only
        self._seal_path, self._backup_path = (path.with_name(f"{path.name}{end}") for end in (".sha256", ".backup"))
        self._batches = 0
        self._seals_after_commit = self._syncs_after_commit = False
        self._is_sealed = False
        self._verify_seal()
        # `mode=ro` makes SQLite itself refuse to write.
        uri = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rwc'}"
        with self._errors():
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise
        self._is_sealed = self._seal_path.exists()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write all transactions of the block to the disk at once. Blocks may overlap, as those of coroutines do.

        Raises:
            StorageError: The disk is full or fails. Nothing of the block is recorded.
        """
        with self._errors():
            if not self._connection.in_transaction:
                self._begin()
            self._batches += 1
            try:
                yield
            finally:
                self._batches -= 1
                if not self._connection.in_transaction:
                    raise StorageError(f"cannot write {self._path}: the disk is full or fails. {_FREE_SPACE}")
                if not self._batches:
                    self._commit()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Execute the block, which must not await anything, in one transaction. It may contain others.

        Raises:
            StorageError: The disk is full or fails. Nothing of the block is recorded.
            CorruptFileError: The file was damaged while it was open.
        """
        with self._errors():
            is_outermost = not self._connection.in_transaction
            if is_outermost:
                self._begin()
            else:
                self._connection.execute("SAVEPOINT part")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:  # SQLite undoes everything itself when the disk is full
                    self._connection.execute("ROLLBACK" if is_outermost else "ROLLBACK TO part")
                    if not is_outermost:
                        self._connection.execute("RELEASE part")
                raise
            if is_outermost:
                self._commit()
            else:
                self._connection.execute("RELEASE part")

    def query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Raises:
            CorruptFileError: The file was damaged while it was open.
        """
        with self._errors():
            return self._connection.execute(statement, values).fetchall()

    def sync(self) -> None:
        """Flush everything to disk, seal the file, and replace the backup."""
        if self._connection.in_transaction:
            self._syncs_after_commit = True
            return
        sync_file(self._path)
        self.seal()
        write_atomically(self._backup_path, self._path.read_bytes())

    def seal(self) -> None:
        """Write the checksum of the whole file, at the end of the present transaction. The next one removes it."""
        if self._read_only or self._is_sealed:
            return
        if self._connection.in_transaction:
            self._seals_after_commit = True
            return
        write_atomically(self._seal_path, f"{sha256_of(self._path)}  {self._path.name}\n")
        self._is_sealed = True

    def close(self) -> None:
        """Seal the file and close it."""
        self.seal()
        self._connection.close()

    def _begin(self) -> None:
        if self._read_only:
            raise LedgerError(f"{self._path} is open for reading only")
        if self._is_sealed:
            self._seal_path.unlink(missing_ok=True)
            sync_directory(self._path.parent)
            self._is_sealed = False
        self._connection.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if self._syncs_after_commit:
            self._syncs_after_commit = False
            self.sync()
        if self._seals_after_commit:
            self._seals_after_commit = False
            self.seal()

    def _prepare(self) -> None:
        self._connection.create_function("row_digest", -1, row_digest, deterministic=True)
        self._connection.create_function("add_digests", 3, _add, deterministic=True)
        [(version,)] = self._connection.execute("PRAGMA user_version").fetchall()
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version == 0 and "digest" not in tables and not self._read_only:
            self._create()
        elif version != _SCHEMA_VERSION or not tables >= {*_COLUMNS, "digest"}:
            raise CorruptFileError(f"{self._path} is damaged, or was written by another version of rlad. {_REMEDY}")
        if not self._read_only:
            self._connection.execute("PRAGMA journal_mode=TRUNCATE")
            # A killed process loses nothing: the system has the data. `sync` makes it survive a power failure.
            self._connection.execute("PRAGMA synchronous=OFF")
        self._verify()

    def _create(self) -> None:
        """Create the tables and triggers, or add the digest to a ledger that has none yet."""
        self._connection.execute("PRAGMA journal_mode=TRUNCATE")
        statements = [*_TABLES.split(";\n"), *_triggers(), f"PRAGMA user_version={_SCHEMA_VERSION}"]
        with self.transaction():
            for statement in statements:
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO digest (only, sum) VALUES (0, ?)", (self._sum_of_rows(),))
        sync_directory(self._path.parent)

    def _verify(self) -> None:
        """Compare the rows with their digest, and let SQLite check the structure, in one snapshot."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN")
            try:
                problems = cursor.execute("PRAGMA integrity_check(1)").fetchall()
                recorded = cursor.execute("SELECT sum FROM digest").fetchall()
                found = self._sum_of_rows()
            finally:
                cursor.execute("ROLLBACK")
        if problems != [("ok",)]:
            raise CorruptFileError(f"{self._path} is damaged: {problems[0][0]}. {_REMEDY}")
        if recorded != [(found,)]:
            raise CorruptFileError(f"{self._path} is damaged: its rows do not match their checksum. {_REMEDY}")

    def _sum_of_rows(self) -> str:
        total = 0
        for table, columns in _COLUMNS.items():
            for row in self._connection.execute(f"SELECT {', '.join(columns)} FROM {table}"):
                total += int(row_digest(table, *row), 16)
        return _hex(total)

    def _verify_seal(self) -> None:
        for _ in range(3):  # the writer may remove the seal between the reads below
            try:
                seal = self._seal_path.read_bytes()
            except FileNotFoundError:
                return
            if self._path.is_file() and seal == f"{sha256_of(self._path)}  {self._path.name}\n".encode():
                return
        raise CorruptFileError(f"{self._path} is damaged: it does not match {self._seal_path.name}. {_REMEDY}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into typed ones that name the file."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _FULL:
                raise StorageError(f"cannot write {self._path}: {error}. {_FREE_SPACE}") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LedgerError(f"{self._path} is in use by another process: {error}") from error
            raise CorruptFileError(f"{self._path} is damaged: {error}. {_REMEDY}") from error


def row_digest(*values: object) -> str:
    """Return the digest of a table's name and the values of a row, 128 bits in hexadecimal."""
    return hashlib.blake2b(repr(values).encode(), digest_size=_DIGEST_BITS // 8).hexdigest()


def _add(total: str, added: str | None, removed: str | None) -> str:
    return _hex(int(total, 16) + int(added or "0", 16) - int(removed or "0", 16))


def _hex(total: int) -> str:
    return f"{total % 2**_DIGEST_BITS:0{_DIGEST_BITS // 4}x}"


def _triggers() -> list[str]:
    """Return triggers that keep the digest in step with the rows."""
    statements = []
    for table, columns in _COLUMNS.items():
        new, old = (
            f"row_digest('{table}', {', '.join(f'{row}.{column}' for column in columns)})" for row in ("NEW", "OLD")
        )
        for event, added, removed in (("INSERT", new, "NULL"), ("UPDATE", new, old), ("DELETE", "NULL", old)):
            statements.append(
                f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table} BEGIN "
                f"UPDATE digest SET sum = add_digests(sum, {added}, {removed}); END"
            )
    return statements
