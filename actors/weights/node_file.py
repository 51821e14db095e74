"""Weight file of a node, in shared memory: one writer per version, and only changed buckets are written."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlad.contracts import WeightsManifest
from rlad.errors import DeadlineError, EngineError
from rlad.weight_file import BUCKET_BYTES, Bytes, threads

Fetch = Callable[[Sequence[int]], Sequence[Sequence[Bytes]]]
"""Returns the content of the buckets at the given indices. Each bucket is a sequence of parts to concatenate."""

_PREFIX = "rlad-"
_ALIVE = "alive.lock"
_WRITING = "writing.lock"
_FILES = "v*.safetensors"
_LONGEST_NAME = 200
# Deadline for a lock. Its holder writes one model to memory, which takes seconds.
_LOCK_TIMEOUT_S = 300.0
# Pauses between two attempts to lock.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


@dataclass(frozen=True, slots=True)
class HeldFile:
    """Weight file under a shared lock. No worker writes to it until it is released."""

    path: Path
    _descriptor: int

    def release(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Delete the file because its content is wrong. The next `hold` writes it again."""
        self.path.unlink(missing_ok=True)


def require_shared_memory(num_bytes: int, run_id: str, parent: Path | None = None) -> None:
    """Check that this node's shared memory has room for a weight file.

    Args:
        num_bytes: Size of the file.
        run_id: Id of the run. The files that it has there already are overwritten in place.
        parent: Parent of the run's folder. Defaults to shared memory.

    Raises:
        EngineError: There is too little room.
    """
    folder = parent or _shared_memory()
    stats = os.statvfs(folder)
    held = max((path.stat().st_size for path in (folder / f"{_PREFIX}{run_id}").glob(_FILES)), default=0)
    if stats.f_bavail * stats.f_frsize + held >= num_bytes:
        return
    free, size, needed = (
        f"{number / (1 << 30):.1f}"
        for number in (stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize, num_bytes)
    )
    raise EngineError(
        f"weight updates need {needed} GiB of shared memory on each node with rollout workers; {folder} has {free} GiB "
        f"free of {size}. Give the container more (`docker run --shm-size={2 * num_bytes // (1 << 30) + 1}g` or "
        "--ipc=host; in Kubernetes an emptyDir of medium Memory at /dev/shm), or use weights.transport nccl"
    )


class NodeWeights:
    """Weight files of one run on one node, shared by the run's workers there. Usually there is a single file.

    The folder is `/dev/shm/rlad-<run_id>`, or a folder in the temporary directory if /dev/shm is not writable. Every
    worker holds a shared lock on the folder, which the kernel drops when the process dies. A folder without a lock
    belongs to a dead run; the next worker that starts on the node removes it.
    """

    def __init__(self, run_id: str, parent: Path | None = None) -> None:
        """
        Args:
            run_id: Run id, one path component.
            parent: Parent of the folder. Defaults to shared memory.
        """
        if Path(run_id).name != run_id:
            raise EngineError(f"the run id must be one path component because it names a folder; got {run_id!r}")
        self._parent = parent or _shared_memory()
        self._folder = self._parent / f"{_PREFIX}{run_id}"
        self._alive = self._enter()
        # Checksum of the last held file, and the digests of its buckets.
        self._known: tuple[str, tuple[bytes, ...]] = "", ()
        self._mapping = _Mapping()
        self._remove_dead_runs()

    def path(self, manifest: WeightsManifest) -> Path:
        """Return the path of these weights on this node. The file exists at least as long as it is held."""
        return self._folder / f"v{manifest.version}-{manifest.checksum}.safetensors"

    def hold(self, manifest: WeightsManifest, digests: Sequence[bytes], fetch: Fetch) -> HeldFile:
        """Return the file with these weights, locked until it is released.

        The first caller on the node writes the file; other callers block meanwhile. It overwrites an older file that no
        worker holds, writing only the buckets that differ, or creates a new file if there is none.

        Args:
            manifest: Manifest of the weights.
            digests: Digests of the buckets, in order.
            fetch: Called with the indices of the buckets to write. Its exceptions propagate; no partial file remains.
        """
        with _locked(self._folder / _WRITING):
            path = self.path(manifest)
            if not path.exists():
                self._make(path, manifest, digests, fetch)
            self._known = manifest.checksum, tuple(digests)
            self._mapping.close_unless_maps(path)
            descriptor = os.open(path, os.O_RDONLY)
            _lock(descriptor, fcntl.LOCK_SH, path)  # at once: a writer would hold the folder's lock
            return HeldFile(path, descriptor)

    def remove_older(self, manifest: WeightsManifest) -> None:
        """Remove unheld files of earlier versions, and unfinished files of workers that were killed while writing.

        Blocks while another worker writes. An engine that has mapped a removed file keeps its mapping.
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
        """Release the folder. The last worker removes it."""
        os.close(self._alive)
        _remove_if_dead(self._folder)

    def _enter(self) -> int:
        """Create the folder and lock it as in use. Retries if another worker removes a dead run's folder meanwhile."""
        while True:
            with suppress(FileNotFoundError):
                self._make_folder()
                lock = self._folder / _ALIVE
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
                _lock(descriptor, fcntl.LOCK_SH, lock)
                if _is_open_at(descriptor, lock):
                    return descriptor
                os.close(descriptor)

    def _make_folder(self) -> None:
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise EngineError(
                f"{self._folder} is no directory or belongs to another user, who could change the weights in it; "
                "choose another run name"
            )

    def _make(self, path: Path, manifest: WeightsManifest, digests: Sequence[bytes], fetch: Fetch) -> None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        with self._spare(manifest.num_bytes) as spare:
            indices = self._changed(spare, digests)
            buckets = list(zip(indices, fetch(indices), strict=True))
            if spare is None:
                _write(unfinished, buckets)
            else:
                # Renamed before writing: if this worker is killed, no file with mixed content looks like valid weights.
                spare.rename(unfinished)
                self._mapping.write(unfinished, buckets)
        unfinished.rename(path)

    @contextmanager
    def _spare(self, num_bytes: int) -> Iterator[Path | None]:
        """Lock an unheld file of another version and the same size, for overwriting. Yield None if there is none."""
        for path in self._folder.glob(_FILES):
            with _locked_at_once(path) as is_free:
                if is_free and path.stat().st_size == num_bytes:
                    yield path
                    return
        yield None

    def _changed(self, spare: Path | None, digests: Sequence[bytes]) -> list[int]:
        """Return the indices of the buckets that differ from the spare file; all if this worker never held it."""
        checksum, known_digests = self._known
        if spare is None or _checksum(spare) != checksum:
            return list(range(len(digests)))
        return [index for index, digest in enumerate(digests) if digest != known_digests[index]]

    def _remove_dead_runs(self) -> None:
        for folder in self._parent.glob(f"{_PREFIX}*"):
            if folder != self._folder:
                _remove_if_dead(folder)


class _Mapping:
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
        with path.open("r+b") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._content = inode, np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        with threads() as copying:
            for copied in [copying.submit(self._copy, index * BUCKET_BYTES, parts) for index, parts in buckets]:
                copied.result()

    def _copy(self, offset: int, parts: Sequence[Bytes]) -> None:
        for part in parts:
            np.copyto(self._content[offset : offset + len(part)], part)
            offset += len(part)


def _write(path: Path, buckets: Sequence[tuple[int, Sequence[Bytes]]]) -> None:
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


def remove_dead_folder(run_id: str, parent: Path | None = None) -> None:
    """Remove the folder of a run on this node, unless a worker holds it. Args as for `NodeWeights`."""
    _remove_if_dead((parent or _shared_memory()) / f"{_PREFIX}{run_id}")


def _remove_if_dead(folder: Path) -> None:
    try:
        lock = os.open(folder / _ALIVE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # removed already, or another user's folder
    try:
        if _lock_at_once(lock) and _is_open_at(lock, folder / _ALIVE):
            # Renamed at once: a worker that enters meanwhile makes a new folder, and loses no file of its own.
            doomed = folder.with_name(f"{folder.name[:_LONGEST_NAME]}.removed-{uuid.uuid4().hex}")
            folder.rename(doomed)
            shutil.rmtree(doomed)
    finally:
        os.close(lock)


def _version(path: Path) -> int:
    return int(path.stem.partition("-")[0].removeprefix("v"))


def _checksum(path: Path) -> str:
    return path.stem.partition("-")[2]


@contextmanager
def _locked_at_once(path: Path) -> Iterator[bool]:
    """Try to lock a file exclusively until the end of the block. Yield whether that succeeded."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock_at_once(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, path: Path) -> None:
    """Lock an open file, and wait while other processes have a lock on it that excludes this one.

    Raises:
        DeadlineError: Another process has held its lock too long. The kernel drops the locks of processes that end.
    """
    deadline, pause_s = time.monotonic() + _LOCK_TIMEOUT_S, _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{path} was locked by another process for {_LOCK_TIMEOUT_S:g} s: a worker of this node hangs "
                    "while it writes the weights"
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _lock_at_once(descriptor: int) -> bool:
    """Lock an open file exclusively unless another process has a lock on it. Return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the file at `path`, which may have been replaced since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)


def _shared_memory() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
