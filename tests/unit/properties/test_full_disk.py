"""A disk that is full at any write leaves what was there before, and gives one clear error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM, ROOT = Path(__file__).with_name("full_disk.py"), Path(__file__).parents[3]
KINDS = {"report", "metrics", "ledger", "start", "checkpoint", "export", "traces", "training traces", "registry"}
# A file system of its own, in a mount namespace that ends with the program.
MOUNT = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" "$3" "$1" "$4"'


def namespace() -> list[str] | None:
    """Return the command that enters a namespace in which file systems can be mounted; None if there is none."""
    unshare = shutil.which("unshare")
    for options in ([], ["--user", "--map-root-user"]):
        command = [str(unshare), "--mount", *options]
        if unshare and subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False).returncode == 0:
            return command
    return None


def test_what_was_there_before_is_intact_and_the_write_succeeds_once_there_is_room(tmp_path: Path) -> None:
    command = namespace()
    if command is None:
        pytest.skip("no small file system can be mounted: root, or user namespaces, are needed")
    for name in ("disk", "other"):
        (tmp_path / name).mkdir()
    result = subprocess.run(
        [*command, "sh", "-c", MOUNT, "sh", tmp_path / "disk", sys.executable, PROGRAM, tmp_path / "other"],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["kind"] for line in lines} == KINDS
    for line in lines:
        assert line["others"] == [], line["kind"]
        assert line["found"] == 2, line["kind"]
        assert line["errors"], line["kind"]
        for error in line["errors"]:
            assert str(tmp_path / "disk") in error, line["kind"]
            assert "No space left" in error or "is full" in error or "continue the run with --resume" in error
