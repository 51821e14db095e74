"""The way of new weights from the learner to the samplers: one object in the object store, then one file in shared memory on every node.

An engine's process is no Ray worker and cannot read the object store, so a node's first rollout worker writes the bytes to `/dev/shm` and all engines
of the node map that file. The checksum travels with the reference; the engine compares it with the bytes it mapped before it loads them.

Behind the gathered tensors there are two copies of the weights on a node, the object and the file: what is put is a header and the tensors' own memory,
never a serialised whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
import torch
import xxhash

from actors.messages import WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError

Bytes = npt.NDArray[np.uint8]

_PREFIX = "rlad-"
_ALIVE = "alive.lock"
_WRITING = "writing.lock"
_MOST_THREADS = 8
_BUCKET_BYTES = 16 << 20

_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def publish(tensors: Mapping[str, torch.Tensor], version: int) -> WeightsPublication:
    """Put a model's weights into the object store.

    Args:
        tensors: by their names in the Hugging Face state dict, tied ones under one name or several.
        version: of the policy, a count of trained steps.
    """
    parts = safetensors_parts(tensors)
    # Both read all weights, without the interpreter's lock: side by side they take as long as the longer one.
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(checksum, parts)
        ref = ray.put(parts)
    manifest = WeightsManifest(version=version, checksum=digest.result(), num_bytes=sum(len(part) for part in parts))
    return WeightsPublication(manifest=manifest, ref=ref)


def safetensors_parts(tensors: Mapping[str, torch.Tensor]) -> list[Bytes]:
    """A safetensors file of the tensors, as its header and views of the tensors' memory. Of tied tensors the first name is kept.

    Raises:
        EngineError: a tensor of a type that the format does not have.
    """
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if identity not in seen:
            seen.add(identity)
            kept[name] = tensor.detach().cpu().contiguous()
    # Wide types first, as the format's own writer has them: every tensor then lies at a multiple of its element's size.
    names = sorted(kept, key=lambda name: (-kept[name].element_size(), name))
    views = [kept[name].reshape(-1).view(torch.uint8).numpy() for name in names]
    return [_safetensors_header({name: kept[name] for name in names}), *views]


def _safetensors_header(tensors: Mapping[str, torch.Tensor]) -> Bytes:
    """Length (8 bytes, little-endian), then JSON padded by spaces to a multiple of 8: type, shape and place of each tensor, in the order given."""
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise EngineError(f"weights of type {tensor.dtype} cannot be published, {name} is: there are {', '.join(map(str, _SAFETENSORS_TYPES))}")
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _SAFETENSORS_TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8)


def checksum(parts: Iterable[Bytes]) -> str:
    """Of the bytes end to end, however they are cut into parts: xxh3 (128 bits) over the xxh3 of every bucket of 16 MiB, in hexadecimal.

    Buckets are hashed on several threads, so that every engine can afford it at every update.
    """
    with _threads() as hashing:
        return xxhash.xxh3_128_hexdigest(b"".join(hashing.map(_digest, _buckets(parts))))


def layout_checksum(names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """Of what tensors are without their values, in their order: xxh3 (128 bits) in hexadecimal. Stands for the bytes where nobody sees all of them."""
    layout = [list(names), list(dtype_names), [list(shape) for shape in shapes]]
    return xxhash.xxh3_128_hexdigest(json.dumps(layout, separators=(",", ":")).encode())


def _buckets(parts: Iterable[Bytes]) -> Iterator[list[Bytes]]:
    bucket: list[Bytes] = []
    room = _BUCKET_BYTES
    for part in parts:
        while len(part):
            bucket.append(part[:room])
            part, room = part[room:], room - len(bucket[-1])
            if room == 0:
                yield bucket
                bucket, room = [], _BUCKET_BYTES
    if bucket:
        yield bucket


def _digest(bucket: Sequence[Bytes]) -> bytes:
    digest = xxhash.xxh3_128()
    for part in bucket:
        digest.update(part.data)
    return digest.digest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))


def require_published(path: Path, manifest: WeightsManifest) -> None:
    """Refuse a file that is not what was published. It is mapped, not read: who maps it next finds its pages there.

    Raises:
        WeightsMismatchError: its size or checksum is another.
    """
    size = path.stat().st_size
    if size != manifest.num_bytes:
        raise WeightsMismatchError(f"version {manifest.version}: {manifest.num_bytes} bytes were published, {path} has {size}")
    found = checksum([np.memmap(path, np.uint8, mode="r")])
    if found != manifest.checksum:
        raise WeightsMismatchError(f"version {manifest.version}: published with checksum {manifest.checksum}, {path} has {found}")


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

    def write(self, manifest: WeightsManifest, parts: Iterable[Bytes]) -> Path:
        """Write the file from its parts, unless another worker of the node has. Blocks while another is writing it."""
        path = self.path(manifest)
        with _locked(self._folder / _WRITING):
            if not path.exists():
                unfinished = path.with_suffix(".unfinished")
                _write(unfinished, parts)
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


def _write(path: Path, parts: Iterable[Bytes]) -> None:
    """Several threads write: most of the time goes into the kernel's making new pages."""
    pieces: list[tuple[int, Bytes]] = []
    end = 0
    for part in parts:
        pieces += [(end + start, part[start : start + _BUCKET_BYTES]) for start in range(0, len(part), _BUCKET_BYTES)]
        end += len(part)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with _threads() as writers:
            for written in [writers.submit(_write_piece, descriptor, *piece) for piece in pieces]:
                written.result()
    finally:
        os.close(descriptor)


def _write_piece(descriptor: int, offset: int, piece: Bytes) -> None:
    while len(piece):
        written = os.pwrite(descriptor, piece.data, offset)
        piece, offset = piece[written:], offset + written


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
