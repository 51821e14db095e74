"""The file of a node that its engines load weights from, in shared memory: written once a version, and only where it changed."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlad.contracts import WeightsManifest
from rlad.errors import EngineError
from rlad.weight_file import BUCKET_BYTES, Bytes, threads

Fetch = Callable[[Sequence[int]], Sequence[Sequence[Bytes]]]
"""The content of the buckets at these places, each as parts that end to end are it."""

_PREFIX = "rlad-"
_ALIVE = "alive.lock"
_WRITING = "writing.lock"
_FILES = "v*.safetensors"


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that nobody writes to until it is released."""

    path: Path
    _descriptor: int

    def release(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Its content is not what it should be: the next to want it writes it anew."""
        self.path.unlink(missing_ok=True)


class NodeWeights:
    """The weight files of one run on one node, shared by the run's workers there. As a rule there is one.

    The folder is `/dev/shm/rlad-<run_id>`, or one in the temporary directory where there is no such memory. Every worker holds a shared lock on it, which
    the kernel drops when the process dies; so a folder nobody locks belongs to a dead run, and is removed by the next worker that starts on the node.
    """

    def __init__(self, run_id: str, parent: Path | None = None) -> None:
        """
        Args:
            run_id: one path component.
            parent: where the folder goes; by default shared memory.
        """
        if Path(run_id).name != run_id:
            raise EngineError(f"a run id names a folder and must be one path component, got {run_id!r}")
        self._parent = parent or _shared_memory()
        self._folder = self._parent / f"{_PREFIX}{run_id}"
        self._alive = self._enter()
        self._known: tuple[str, tuple[bytes, ...]] = (
            "",
            (),
        )  # of the last file held: its checksum, and the digests of its buckets
        self._mapping = _Mapping()
        self._remove_dead_runs()

    def path(self, manifest: WeightsManifest) -> Path:
        """Where these weights are on this node, as long as somebody holds them."""
        return self._folder / f"v{manifest.version}-{manifest.checksum}.safetensors"

    def hold(self, manifest: WeightsManifest, digests: Sequence[bytes], fetch: Fetch) -> HeldFile:
        """The file with these weights, until it is released. Blocks while another worker of the node writes it.

        The first to ask writes it: over an older file that nobody holds, without the buckets that are the same in both; or else as a new one.

        Args:
            digests: of its buckets, in their order.
            fetch: whatever it raises is raised here, and nothing is left behind.
        """
        with _locked(self._folder / _WRITING):
            path = self.path(manifest)
            if not path.exists():
                self._make(path, manifest, digests, fetch)
            self._known = manifest.checksum, tuple(digests)
            self._mapping.close_unless_of(path)
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # at once: who writes has the folder's lock
            return HeldFile(path, descriptor)

    def remove_older(self, manifest: WeightsManifest) -> None:
        """Remove the files of earlier versions that nobody holds, and what a worker left that was killed while it wrote.

        Blocks while another worker writes. An engine that has mapped one of them keeps its mapping.
        """
        with _locked(self._folder / _WRITING):
            for path in self._folder.glob("*.unfinished"):
                path.unlink()
            for path in self._folder.glob(_FILES):
                if _version(path) < manifest.version:
                    with _locked_at_once(path) as is_free:
                        if is_free:
                            path.unlink()

    def close(self) -> None:
        """Leave. The last worker to do so removes the folder."""
        os.close(self._alive)
        _remove_if_dead(self._folder)

    def _enter(self) -> int:
        """Lock the folder as in use. Somebody may be removing what a dead run left of it at this moment: then make it anew."""
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.stat().st_uid != os.getuid():
                raise EngineError(
                    f"{self._folder} belongs to another user, who could change the weights in it: give this run another name"
                )
            lock = self._folder / _ALIVE
            with suppress(FileNotFoundError):
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _is_open_at(descriptor, lock):
                    return descriptor
                os.close(descriptor)

    def _make(self, path: Path, manifest: WeightsManifest, digests: Sequence[bytes], fetch: Fetch) -> None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        with self._spare(manifest.num_bytes) as spare:
            places = self._changed(spare, digests)
            buckets = list(zip(places, fetch(places), strict=True))
            if spare is None:
                _write(unfinished, buckets)
            else:
                spare.rename(
                    unfinished
                )  # from here on it is neither: a worker that is killed leaves nothing that passes for weights
                self._mapping.write(unfinished, buckets)
        unfinished.rename(path)

    @contextmanager
    def _spare(self, num_bytes: int) -> Iterator[Path | None]:
        """Another version's file of this size, locked against all who would hold it; None where there is none that nobody holds."""
        for path in self._folder.glob(_FILES):
            with _locked_at_once(path) as is_free:
                if is_free and path.stat().st_size == num_bytes:
                    yield path
                    return
        yield None

    def _changed(self, spare: Path | None, digests: Sequence[bytes]) -> list[int]:
        """The places of the buckets that the spare file has not. It is known by its checksum, and its buckets to those who held it."""
        checksum, there = self._known
        if spare is None or _checksum(spare) != checksum:
            return list(range(len(digests)))
        return [place for place, digest in enumerate(digests) if digest != there[place]]

    def _remove_dead_runs(self) -> None:
        for folder in self._parent.glob(f"{_PREFIX}*"):
            if folder != self._folder:
                _remove_if_dead(folder)


class _Mapping:
    """A file that is written to through memory: its pages are mapped once, and written to at the speed of any memory at every later version."""

    def __init__(self) -> None:
        self._inode: int | None = None
        self._content: Bytes = np.zeros(0, np.uint8)

    def close_unless_of(self, path: Path) -> None:
        """A file that is gone from the folder would keep its memory as long as it is mapped."""
        if self._inode != path.stat().st_ino:
            self._inode, self._content = None, np.zeros(0, np.uint8)

    def write(self, path: Path, buckets: Sequence[tuple[int, Sequence[Bytes]]]) -> None:
        """Write buckets to their places of a file that has all its pages: one that lacked some could find no memory for them, and end the process."""
        with path.open("r+b") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._content = inode, np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        with threads() as copying:
            for copied in [copying.submit(self._copy, place * BUCKET_BYTES, parts) for place, parts in buckets]:
                copied.result()

    def _copy(self, offset: int, parts: Sequence[Bytes]) -> None:
        for part in parts:
            np.copyto(self._content[offset : offset + len(part)], part)
            offset += len(part)


def _write(path: Path, buckets: Sequence[tuple[int, Sequence[Bytes]]]) -> None:
    """Write a new file. On several threads: most of the time goes into the kernel's making new pages."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with threads() as writers:
            for written in [
                writers.submit(_write_bucket, descriptor, place * BUCKET_BYTES, parts) for place, parts in buckets
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


def _remove_if_dead(folder: Path) -> None:
    try:
        lock = os.open(folder / _ALIVE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # gone already, or not ours
    try:
        if _lock_at_once(lock) and _is_open_at(lock, folder / _ALIVE):
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def _version(path: Path) -> int:
    return int(path.stem.partition("-")[0].removeprefix("v"))


def _checksum(path: Path) -> str:
    return path.stem.partition("-")[2]


@contextmanager
def _locked_at_once(path: Path) -> Iterator[bool]:
    """Whether the file could be locked for oneself alone until the end of the block: nobody else has a lock on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock_at_once(descriptor)
    finally:
        os.close(descriptor)


def _lock_at_once(descriptor: int) -> bool:
    """Lock an open file for oneself alone, unless somebody has a lock on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`, which may have been removed and made anew since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _shared_memory() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
