"""No flipped bit of a ledger goes unnoticed, and a reader cannot write."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rlad.errors import CorruptFileError, LedgerError
from rlad.ledger import Ledger

Contents = tuple[list[object], list[object]]


def fill(ledger: Ledger, steps: int) -> None:
    for step in range(steps):
        attempts = ledger.issue(step, [(f"data:0:{step * 4 + index}", f"prompt {index}") for index in range(4)])
        for uid, attempt in attempts.items():
            ledger.record_sampled(uid, attempt)
            ledger.record_scored(uid, attempt)
        ledger.record_claimed(attempts)
        ledger.record_trained(step, attempts)


def flip_bit(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def contents(path: Path) -> Contents:
    """Return all rows as SQLite itself reads them."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = [connection.execute(f"SELECT * FROM {table} ORDER BY uid").fetchall() for table in ("groups", "trained")]
    connection.close()
    return rows[0], rows[1]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_flipped_bit_in_a_closed_ledger_is_always_found(tmp_path: Path, read_only: bool) -> None:
    path, chance = tmp_path / "ledger.sqlite", random.Random(7)
    ledger = Ledger(path)
    fill(ledger, 20)
    ledger.commit(20)
    ledger.close()
    honest = {file: file.read_bytes() for file in (path, tmp_path / "ledger.sqlite.sha256")}
    for file, content in honest.items():
        for _ in range(15):
            file.write_bytes(flip_bit(content, chance))
            with pytest.raises(CorruptFileError, match=r"ledger\.sqlite .*ledger\.sqlite\.backup"):
                Ledger(path, read_only=read_only)
            file.write_bytes(content)
    Ledger(path, read_only=read_only).close()


def test_a_flipped_bit_after_a_kill_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, chance = tmp_path / "ledger.sqlite", random.Random(8)
    fork = os.fork()
    if fork == 0:
        fill(Ledger(path), 100)  # enough rows that most of the file holds something
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(fork, 0)
    assert not (tmp_path / "ledger.sqlite.sha256").exists()
    honest, rows, found = path.read_bytes(), contents(path), 0
    for _ in range(60):
        path.write_bytes(flip_bit(honest, chance))
        try:
            Ledger(path, read_only=True).close()
        except CorruptFileError:
            found += 1
        else:
            assert contents(path) == rows, "the flip is in a byte that holds nothing"
    assert found >= 15


def test_a_lost_row_is_found_although_the_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    fill(ledger, 2)
    with sqlite3.connect(path) as other, pytest.raises(sqlite3.OperationalError, match="no such function"):
        other.execute("DELETE FROM trained WHERE step = 1")
    other.close()
    ledger.close()
    with sqlite3.connect(path) as other:
        for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            other.execute(f"DROP TRIGGER {name}")
        other.execute("DELETE FROM trained WHERE step = 1")
    other.close()
    (tmp_path / "ledger.sqlite.sha256").unlink()
    with pytest.raises(CorruptFileError, match="rows do not match their checksum"):
        Ledger(path)


def test_a_reader_cannot_write_and_sees_the_last_transaction_of_a_live_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    writer = Ledger(path)
    fill(writer, 1)
    reader = Ledger(path, read_only=True)
    with pytest.raises(LedgerError, match="open for reading only"):
        reader.issue(1, [("new", "prompt")])
    with pytest.raises(LedgerError, match="open for reading only"):
        reader.commit(1)
    assert reader.counts() == writer.counts()
    fill_again = writer.issue(1, [("new", "prompt")])
    assert fill_again == {"new": 0}
    assert reader.counts() == writer.counts()
    reader.close()
    writer.close()
    assert (tmp_path / "ledger.sqlite.sha256").exists()


def test_the_backup_continues_from_the_last_checkpoint_and_refuses_a_newer_one(tmp_path: Path) -> None:
    path, backup = tmp_path / "ledger.sqlite", tmp_path / "ledger.sqlite.backup"
    ledger = Ledger(path)
    fill(ledger, 2)
    ledger.commit(2)
    assert backup.read_bytes() == path.read_bytes()
    fill(ledger, 0)
    ledger.issue(2, [("later", "prompt")])
    ledger.close()
    path.write_bytes(backup.read_bytes())
    (tmp_path / "ledger.sqlite.sha256").unlink()
    restored = Ledger(path)
    with pytest.raises(LedgerError, match="the checkpoint has 3 steps, but the ledger only 2"):
        restored.reopen(3)
    assert len(restored.reopen(2)) == 8
    restored.close()


async def test_overlapping_batches_record_everything(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")

    async def issue(step: int) -> None:
        with ledger.batch():
            for index in range(3):
                ledger.issue(step, [(f"{step}:{index}", "prompt")])
                await asyncio.sleep(0)
                with pytest.raises(LedgerError):
                    ledger.issue(step + 10, [(f"{step}:new:{index}", "prompt"), (f"{step}:{index}", "prompt")])

    await asyncio.gather(issue(0), issue(1))
    reader = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert reader.counts().states["issued"] == 6
    reader.close()
    ledger.close()


def test_a_ledger_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.executescript(
            "CREATE TABLE groups (uid TEXT PRIMARY KEY, prompt_id TEXT NOT NULL, step INTEGER NOT NULL, "
            "attempt INTEGER NOT NULL, state TEXT NOT NULL); CREATE TABLE trained (uid TEXT NOT NULL, step INTEGER);"
            "INSERT INTO groups VALUES ('a', 'p', 0, 0, 'issued');"
        )
    old.close()
    ledger = Ledger(path)
    ledger.record_sampled("a", 0)
    ledger.close()
    assert Ledger(path, read_only=True).counts().states["sampled"] == 1


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("no database at all, but long enough to be read as one" * 20)
    with pytest.raises(CorruptFileError, match="is damaged: file is not a database"):
        Ledger(path)
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE other (x)'); c.commit()"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "other.sqlite")], check=True)
    with pytest.raises(CorruptFileError, match="another version"):
        Ledger(tmp_path / "other.sqlite", read_only=True)
    (tmp_path / "link.sqlite").symlink_to(path)
    with pytest.raises(CorruptFileError, match="symbolic link"):
        Ledger(tmp_path / "link.sqlite")
