"""Seals: checksums of the small files of a folder that change while their writer works, in one file `seals.json`.

A seal covers the first bytes of a file. A line that was appended later, right before its writer died, is outside of the
seal and is read as it is. A file without a seal was not written by this package, and passes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from rlad.errors import CorruptFileError
from rlad.integrity.durable import append_durably, write_atomically

SEALS = "seals.json"


Seal = tuple[int, str]
"""Number of bytes at the beginning of a file, and their SHA-256."""


@dataclass(frozen=True, slots=True)
class Seals:
    """Seals of the files in one folder. They have one writer at a time."""

    folder: Path

    def write(self, path: Path, content: str) -> None:
        """Replace a file of the folder, and seal it. Until the file is replaced, both contents have a seal."""
        seals, new = self._read(), _seal_of(content.encode())
        self._store({**seals, path.name: [*seals.get(path.name, [new])[-2:], new]})
        write_atomically(path, content)
        self._store({**seals, path.name: [new]})

    def append(self, path: Path, line: str) -> None:
        """Append a line to a file of the folder, and seal it."""
        append_durably(path, line)
        self._store({**self._read(), path.name: [_seal_of(path.read_bytes())]})

    def verify(self, *, remedy: str) -> None:
        """Compare every sealed file with its seal.

        Raises:
            CorruptFileError: A file is missing or was changed, or the seals are damaged.
        """
        for _ in range(3):  # a writer may replace a file between the reads below
            seals = self._read()
            damaged = [name for name, known in seals.items() if not self._is_intact(name, known)]
            if not damaged:
                return
            if seals == self._read():
                break
        raise CorruptFileError(f"{self.folder / damaged[0]} was damaged or changed after it was written. {remedy}")

    def _is_intact(self, name: str, seals: list[Seal]) -> bool:
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return len(seals) > 1 and not path.exists()  # the writer died before it wrote the file for the first time
        content = path.read_bytes()
        return any(_seal_of(content[: seal[0]]) == seal for seal in seals)

    def _store(self, seals: dict[str, list[Seal]]) -> None:
        write_atomically(self.folder / SEALS, _text_of(seals))

    def _read(self) -> dict[str, list[Seal]]:
        path = self.folder / SEALS
        if not path.exists():
            return {}
        try:
            text = path.read_bytes().decode()
            seals = TypeAdapter(dict[str, list[Seal]]).validate_json(text)
        except ValueError as error:
            raise CorruptFileError(f"{path} is damaged: it is not a list of checksums") from error
        if text != _text_of(seals):
            raise CorruptFileError(f"{path} is damaged: it differs from the form in which it was written")
        return seals


def _seal_of(content: bytes) -> Seal:
    return len(content), hashlib.sha256(content).hexdigest()


def _text_of(seals: dict[str, list[Seal]]) -> str:
    return json.dumps(seals, separators=(",", ":"), sort_keys=True) + "\n"
