"""The way of new weights from the learner to the samplers: one array in the object store, then one file in shared memory on every node.

An engine's process is no Ray worker and cannot read the object store, so a node's first rollout worker writes the bytes to `/dev/shm` and all engines
of the node map that file. The checksum travels with the reference; the engine compares it with the bytes it mapped before it loads them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
import torch
import xxhash
from ray import ObjectRef
from safetensors.torch import save

from rlad.contracts import WeightsManifest
from rlad.errors import EngineError

Bytes = npt.NDArray[np.uint8]

_PREFIX = "rlad-"
_ALIVE = "alive.lock"
_WRITING = "writing.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPublication:
    """Weights that anyone with the reference can load.

    Attributes:
        manifest: version, checksum and size.
        ref: to a uint8 array, the bytes of a safetensors file. Ray drops it when the process that published it ends.
    """

    manifest: WeightsManifest
    ref: ObjectRef


def publish(tensors: Mapping[str, torch.Tensor], version: int) -> WeightsPublication:
    """Put a model's weights into the object store.

    Args:
        tensors: by their names in the Hugging Face state dict, tied ones under one name or several.
        version: of the policy, a count of trained steps.
    """
    content = safetensors_bytes(tensors)
    manifest = WeightsManifest(version=version, checksum=checksum(content), num_bytes=len(content))
    return WeightsPublication(manifest=manifest, ref=ray.put(content))


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> Bytes:
    """A safetensors file of the tensors, in memory. Of tied tensors the first name is kept."""
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if identity not in seen:
            seen.add(identity)
            kept[name] = tensor.detach().cpu().contiguous()
    return np.frombuffer(save(kept), np.uint8)


def checksum(content: Bytes) -> str:
    """xxh3 (128 bits) of the bytes, in hexadecimal: as fast as memory, so every engine can afford it at every update."""
    return xxhash.xxh3_128_hexdigest(content.data)


class NodeWeights:
    """The weight files of one run on one node, shared by the run's workers there.

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
        self._remove_dead_runs()

    def path(self, manifest: WeightsManifest) -> Path:
        """Where these weights are on this node, once `write` has been called for them."""
        return self._folder / f"v{manifest.version}-{manifest.checksum}.safetensors"

    def write(self, manifest: WeightsManifest, content: Bytes) -> Path:
        """Write the file, unless another worker of the node has. Blocks while another is writing it."""
        path = self.path(manifest)
        with _locked(self._folder / _WRITING):
            if not path.exists():
                unfinished = path.with_suffix(".unfinished")
                with unfinished.open("wb") as file:
                    file.write(content.data)
                unfinished.rename(path)
        return path

    def keep_only(self, manifest: WeightsManifest) -> None:
        """Remove all other weights from the node. An engine that has mapped one of them keeps its mapping."""
        for path in self._folder.glob("v*.safetensors"):
            if path != self.path(manifest):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave. The last worker to do so removes the folder."""
        os.close(self._alive)
        _remove_if_dead(self._folder)

    def _enter(self) -> int:
        """Lock the folder as in use. Somebody may be removing what a dead run left of it at this moment: then make it anew."""
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.stat().st_uid != os.getuid():
                raise EngineError(f"{self._folder} belongs to another user, who could change the weights in it: give this run another name")
            lock = self._folder / _ALIVE
            with suppress(FileNotFoundError):
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _is_open_at(descriptor, lock):
                    return descriptor
                os.close(descriptor)

    def _remove_dead_runs(self) -> None:
        for folder in self._parent.glob(f"{_PREFIX}*"):
            if folder != self._folder:
                _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    try:
        lock = os.open(folder / _ALIVE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # gone already, or not ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_open_at(lock, folder / _ALIVE):
            shutil.rmtree(folder)
    except BlockingIOError:
        return  # in use
    finally:
        os.close(lock)


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
