"""A failed write leaves the old file, and no write follows a link."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlad.errors import CorruptFileError
from rlad.integrity.durable import append_durably, write_atomically
from rlad.integrity.seals import Seals

FULL = """
import json, resource, sys
from pathlib import Path
from rlad.errors import StorageError
from rlad.integrity.durable import append_durably, write_atomically
from rlad.ledger import Ledger

resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
folder, errors = Path(sys.argv[1]), {}

def attempt(name, action):
    try:
        action()
    except StorageError as error:
        errors[name] = str(error)

attempt("report", lambda: write_atomically(folder / "report.html", "x" * 100_000))
attempt("metrics", lambda: append_durably(folder / "metrics.jsonl", "y" * 100_000 + "\\n"))
ledger = Ledger(folder / "ledger.sqlite")
recorded = 0

def issue():
    global recorded
    for step in range(10_000):
        ledger.issue(step, [(f"uid-{step}-{index}", "prompt") for index in range(10)])
        recorded += 10

attempt("ledger", issue)
print(json.dumps({"errors": errors, "recorded": recorded, "counted": ledger.counts().states["issued"]}))
"""


def test_a_full_disk_leaves_the_old_files_and_gives_one_clear_error_each(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old report")
    (tmp_path / "metrics.jsonl").write_text("old line\n")
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for name, file in (("report", "report.html"), ("metrics", "metrics.jsonl"), ("ledger", "ledger.sqlite")):
        assert f"cannot write {tmp_path / file}: " in found["errors"][name]
        assert "continue the run with --resume" in found["errors"][name]
    assert (tmp_path / "report.html").read_text() == "old report"
    assert (tmp_path / "metrics.jsonl").read_text() == "old line\n"
    assert found["counted"] == found["recorded"] > 0
    left_over = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left_over == []


def test_a_planted_link_is_replaced_or_refused_but_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("private")
    link = tmp_path / "run" / "report.html"
    link.parent.mkdir()
    link.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        append_durably(link, "line\n")
    write_atomically(link, "report")
    assert outside.read_text() == "private"
    assert not link.is_symlink()
    assert link.read_text() == "report"


def test_a_seal_finds_changes_and_covers_replaced_and_growing_files(tmp_path: Path) -> None:
    seals, path = Seals(tmp_path), tmp_path / "metrics.jsonl"
    seals.write(path, "one\n")
    seals.append(path, "two\n")
    seals.verify(remedy="Restore it")
    with path.open("a") as file:
        file.write("three, written right before a kill\n")
    seals.verify(remedy="Restore it")
    for content in ("onE\ntwo\n", "one\n", ""):
        path.write_text(content)
        with pytest.raises(CorruptFileError, match=r"metrics\.jsonl was damaged or changed .* Restore it"):
            seals.verify(remedy="Restore it")
    path.unlink()
    with pytest.raises(CorruptFileError):
        seals.verify(remedy="Restore it")


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_kill_between_seal_and_content_leaves_a_valid_file(tmp_path: Path, limit: int) -> None:
    program = """
import os, sys
from pathlib import Path
from rlad.integrity.seals import Seals
seals, path, left, real = Seals(Path(sys.argv[1])), Path(sys.argv[1]) / "config.yaml", int(sys.argv[2]), os.replace
seals.write(path, "old")
def replace(*arguments):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    real(*arguments)
os.replace = replace
seals.write(path, "new")
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(limit)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9
    Seals(tmp_path).verify(remedy="Restore it")
    assert (tmp_path / "config.yaml").read_text() == ("old" if limit < 2 else "new")
