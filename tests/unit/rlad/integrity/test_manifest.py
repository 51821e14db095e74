"""A manifest finds every changed bit, every missing file and every file that does not belong."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rlad.errors import CorruptFileError
from rlad.integrity.manifest import MANIFEST, add_to_manifest, verify, write_manifest

REMEDY = "Delete it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "weights.bin").write_bytes(random.Random(1).randbytes(3000))
    (tmp_path / "model" / "inner" / "config.json").write_text('{"layers": 2}')
    write_manifest(tmp_path / "model")
    return tmp_path / "model"


def flip_bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_in_any_file_is_found(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    victim = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    flip_bit(victim, chance)
    with pytest.raises(CorruptFileError, match=REMEDY) as refused:
        verify(folder, remedy=REMEDY)
    assert str(folder) in str(refused.value)


def test_the_manifest_is_that_of_sha256sum(folder: Path) -> None:
    command = ["sha256sum", "--check", "--strict", MANIFEST]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "weights.bin").unlink(), r"weights\.bin is missing"),
        (lambda folder: (folder / "inner" / "new.bin").write_bytes(b"x"), r"inner/new\.bin is not listed"),
        (lambda folder: (folder / MANIFEST).unlink(), "has no SHA256SUMS"),
        (lambda folder: (folder / "inner" / "link").symlink_to("/etc/hostname"), "is a symbolic link to /etc/hostname"),
        (lambda folder: (folder / MANIFEST).write_text("no digest  weights.bin\n"), "expected lines with a SHA-256"),
    ],
)
def test_a_directory_that_differs_from_its_manifest_is_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    verify(folder, remedy=REMEDY)
    change(folder)
    with pytest.raises(CorruptFileError, match=message):
        verify(folder, remedy=REMEDY)


def test_every_rank_checks_a_share_and_together_they_check_all(folder: Path) -> None:
    def refusing_ranks() -> int:
        refusals = 0
        for rank in range(2):
            try:
                verify(folder, remedy=REMEDY, rank=rank, ranks=2)
            except CorruptFileError:
                refusals += 1
        return refusals

    assert refusing_ranks() == 0
    for name in ("weights.bin", "inner/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"?" + content[1:])
        assert refusing_ranks() == 1
        (folder / name).write_bytes(content)


def test_a_file_can_be_added_later(folder: Path) -> None:
    (folder / "README.md").write_text("model card")
    add_to_manifest(folder, "README.md")
    verify(folder, remedy=REMEDY)
