"""Writing of weight files in shared memory: new ones, and existing ones through a memory map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlad.weight_deltas.versions import apply_delta
from rlad.weight_file import BUCKET_BYTES, Bytes, threads


class FileMapping:
    """Writable memory map of the weight file. Its pages are mapped once, so later writes run at memory speed."""

    def __init__(self) -> None:
        self._inode: int | None = None
        self._content: Bytes = np.zeros(0, np.uint8)

    def close_unless_maps(self, path: Path) -> None:
        """Drop the mapping of another file. A deleted file keeps its memory as long as it is mapped."""
        if self._inode != path.stat().st_ino:
            self._inode, self._content = None, np.zeros(0, np.uint8)

    def write(self, path: Path, buckets: Sequence[tuple[int, Sequence[Bytes]]]) -> None:
        """Write buckets, given by index, to an existing file that has all its pages.

        A file with missing pages must not be written through a mapping: if no memory is left for a page, the kernel
        ends the process with SIGBUS.
        """
        self._map(path)
        with threads() as copying:
            for copied in [copying.submit(self._copy, index * BUCKET_BYTES, parts) for index, parts in buckets]:
                copied.result()

    def apply(self, path: Path, deltas: Sequence[Sequence[Bytes]]) -> None:
        """Apply deltas, in order, to an existing file that has all its pages.

        Raises:
            WeightsMismatchError: A delta is corrupt or does not fit the file.
        """
        self._map(path)
        for buckets in deltas:
            apply_delta(self._content, buckets)

    def _map(self, path: Path) -> None:
        with path.open("r+b") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._content = inode, np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)

    def _copy(self, offset: int, parts: Sequence[Bytes]) -> None:
        for part in parts:
            np.copyto(self._content[offset : offset + len(part)], part)
            offset += len(part)


def write_new(path: Path, buckets: Sequence[tuple[int, Sequence[Bytes]]]) -> None:
    """Write buckets, given by index, to a new file. Uses several threads because page allocation dominates the time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with threads() as writers:
            for written in [
                writers.submit(_write_bucket, descriptor, index * BUCKET_BYTES, parts) for index, parts in buckets
            ]:
                written.result()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_bucket(descriptor: int, offset: int, parts: Sequence[Bytes]) -> None:
    for part in parts:
        while len(part):
            written = os.pwrite(descriptor, part.data, offset)
            part, offset = part[written:], offset + written
