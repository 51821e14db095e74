"""Weight file of a node, in shared memory: one writer per version, and only changed buckets are written."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from actors.weights.file_content import FileMapping, write_new
from actors.weights.file_locks import is_open_at, lock, lock_at_once, locked, locked_at_once
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError
from rlad.weight_file import Bytes

Fetch = Callable[[Sequence[int]], Sequence[Sequence[Bytes]]]
"""Returns the content of the buckets at the given indices. Each bucket is a sequence of parts to concatenate."""

_PREFIX = "rlad-"
_ALIVE = "alive.lock"
_WRITING = "writing.lock"
_FILES = "v*.safetensors"
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class HeldFile:
    """Weight file under a shared lock. No worker writes to it until it is released."""

    path: Path
    _descriptor: int

    def release(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Delete the file because its content is wrong, unless that has happened. The next `hold` writes it again."""
        if is_open_at(self._descriptor, self.path):
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaChain:
    """Deltas that lead from a full version to a newer one.

    Attributes:
        checksums: Checksum of the full version, then that of the version after each delta.
        digests: Digests of the newest version's buckets, in order.
        fetch: Returns the deltas from the one at the given place on. Each is a sequence of encoded buckets.
    """

    checksums: tuple[str, ...]
    digests: tuple[bytes, ...]
    fetch: Callable[[int], Sequence[Sequence[Bytes]]]


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
        self._mapping = FileMapping()
        self._remove_dead_runs()

    def path(self, manifest: WeightsManifest) -> Path:
        """Return the path of these weights on this node. The file exists at least as long as it is held."""
        return self._folder / f"v{manifest.version}-{manifest.checksum}.safetensors"

    def hold(
        self, manifest: WeightsManifest, digests: Sequence[bytes], fetch: Fetch, chain: DeltaChain | None = None
    ) -> HeldFile:
        """Return the file with these weights, locked until it is released.

        The first caller on the node writes the file; other callers block meanwhile. It overwrites an older file that no
        worker holds, writing only the buckets that differ, or creates a new file if there is none. If the weights are
        published as deltas, it applies those that the older file lacks, or writes the full version and applies all.

        Args:
            manifest: Manifest of the weights.
            digests: Digests of the buckets that `fetch` returns, in order.
            fetch: Called with the indices of the buckets to write. Its exceptions propagate; no partial file remains.
            chain: Deltas from the buckets that `fetch` returns to the weights. None if those are the weights.

        Raises:
            WeightsMismatchError: A delta is corrupt or does not fit. No file of these weights remains.
        """
        with locked(self._folder / _WRITING):
            path = self.path(manifest)
            if not path.exists():
                self._make(path, manifest, digests, fetch, chain)
            self._known = manifest.checksum, tuple(chain.digests if chain else digests)
            self._mapping.close_unless_maps(path)
            descriptor = os.open(path, os.O_RDONLY)
            lock(descriptor, fcntl.LOCK_SH, path)  # at once: a writer would hold the folder's lock
            return HeldFile(path, descriptor)

    def remove_older(self, manifest: WeightsManifest) -> None:
        """Remove unheld files of earlier versions, and unfinished files of workers that were killed while writing.

        Blocks while another worker writes. An engine that has mapped a removed file keeps its mapping.
        """
        with locked(self._folder / _WRITING):
            for path in self._folder.glob("*.unfinished"):
                path.unlink()
            for path in self._folder.glob(_FILES):
                if _version(path) < manifest.version:
                    with locked_at_once(path) as is_free:
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
                alive = self._folder / _ALIVE
                descriptor = os.open(alive, os.O_RDWR | os.O_CREAT, 0o600)
                lock(descriptor, fcntl.LOCK_SH, alive)
                if is_open_at(descriptor, alive):
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

    def _make(
        self,
        path: Path,
        manifest: WeightsManifest,
        digests: Sequence[bytes],
        fetch: Fetch,
        chain: DeltaChain | None,
    ) -> None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        bases = chain.checksums if chain else ()
        with self._spare(manifest.num_bytes, bases) as spare:
            is_base = spare is not None and _checksum(spare) in bases
            indices = [] if is_base else self._changed(spare, digests)
            buckets = list(zip(indices, fetch(indices), strict=True))
            deltas = chain.fetch(bases.index(_checksum(spare)) if spare and is_base else 0) if chain else ()
            if spare is None:
                write_new(unfinished, buckets)
            else:
                # Renamed before writing: if this worker is killed, no file with mixed content looks like valid weights.
                spare.rename(unfinished)
                self._mapping.write(unfinished, buckets)
            if deltas:
                self._mapping.apply(unfinished, deltas)
        unfinished.rename(path)

    @contextmanager
    def _spare(self, num_bytes: int, bases: Sequence[str]) -> Iterator[Path | None]:
        """Lock an unheld file of another version and the same size, for overwriting. Yield None if there is none.

        Args:
            num_bytes: Size of the file.
            bases: Checksums of the versions to which deltas apply. A file of one of them is preferred.
        """
        for path in sorted(self._folder.glob(_FILES), key=lambda path: _checksum(path) not in bases):
            with locked_at_once(path) as is_free:
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


def remove_dead_folder(run_id: str, parent: Path | None = None) -> None:
    """Remove the folder of a run on this node, unless a worker holds it. Args as for `NodeWeights`."""
    _remove_if_dead((parent or _shared_memory()) / f"{_PREFIX}{run_id}")


def _remove_if_dead(folder: Path) -> None:
    try:
        alive = os.open(folder / _ALIVE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # removed already, or another user's folder
    try:
        if lock_at_once(alive) and is_open_at(alive, folder / _ALIVE):
            # Renamed at once: a worker that enters meanwhile makes a new folder, and loses no file of its own.
            doomed = folder.with_name(f"{folder.name[:_LONGEST_NAME]}.removed-{uuid.uuid4().hex}")
            folder.rename(doomed)
            shutil.rmtree(doomed)
    finally:
        os.close(alive)


def _version(path: Path) -> int:
    return int(path.stem.partition("-")[0].removeprefix("v"))


def _checksum(path: Path) -> str:
    return path.stem.partition("-")[2]


def _shared_memory() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
