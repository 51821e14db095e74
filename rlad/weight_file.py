"""Weight file: a safetensors file in buckets of 64 MiB, with a checksum over the buckets, mapped by its readers.

The writer assembles a header and views of the tensors' memory. It never builds a serialized copy of the whole file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from rlad.contracts import WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError

Bytes = npt.NDArray[np.uint8]

BUCKET_BYTES = 64 << 20
_MOST_THREADS = 8

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
_TORCH_TYPES = {name: dtype for dtype, name in _SAFETENSORS_TYPES.items()}


def safetensors_parts(tensors: Mapping[str, torch.Tensor]) -> list[Bytes]:
    """Return the parts of a safetensors file: its header, then views of the tensors' memory.

    Args:
        tensors: Tensors by name. Tied tensors are stored once, under their first name.

    Raises:
        EngineError: The safetensors format does not have a tensor's dtype.
    """
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if identity not in seen:
            seen.add(identity)
            kept[name] = tensor.detach().cpu().contiguous()
    # Wide dtypes first, like the format's own writer, so that every tensor starts at a multiple of its element size.
    names = sorted(kept, key=lambda name: (-kept[name].element_size(), name))
    views = [kept[name].reshape(-1).view(torch.uint8).numpy() for name in names]
    return [_safetensors_header({name: kept[name] for name in names}), *views]


def weight_bytes(directory: Path, dtype: str) -> int:
    """Return the size of a model's tensors in a data type, from the headers of its safetensors files.

    Args:
        directory: Hugging Face model directory.
        dtype: PyTorch's name of a data type.
    """
    size: int = getattr(torch, dtype).itemsize
    elements = 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length))
        elements += sum(math.prod(entry["shape"]) for name, entry in entries.items() if name != "__metadata__")
    return elements * size


def _safetensors_header(tensors: Mapping[str, torch.Tensor]) -> Bytes:
    """Return the header of a safetensors file, for tensors in the given order.

    It has the length of the JSON (8 bytes, little-endian), then JSON padded with spaces to a multiple of 8 bytes, with
    the dtype, shape and offsets of each tensor.
    """
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise EngineError(
                f"weight {name} has dtype {tensor.dtype}, which cannot be published; "
                f"supported: {', '.join(map(str, _SAFETENSORS_TYPES))}"
            )
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8)


def buckets_of(parts: Iterable[Bytes]) -> Iterator[list[Bytes]]:
    """Cut the concatenation of parts into buckets of 64 MiB, each a list of views. The last may be smaller."""
    bucket: list[Bytes] = []
    room = BUCKET_BYTES
    for part in parts:
        while len(part):
            bucket.append(part[:room])
            part, room = part[room:], room - len(bucket[-1])
            if room == 0:
                yield bucket
                bucket, room = [], BUCKET_BYTES
    if bucket:
        yield bucket


def digest(bucket: Sequence[Bytes]) -> bytes:
    """Return the xxh3 digest (128 bits) of a bucket."""
    hashing = xxhash.xxh3_128()
    for part in bucket:
        hashing.update(part.data)
    return hashing.digest()


def checksum_of(digests: Iterable[bytes]) -> str:
    """Return the checksum of a file from the digests of its buckets: xxh3 (128 bits) over them, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def checksum(parts: Iterable[Bytes]) -> str:
    """Return the checksum of a file, given as parts. Buckets are hashed on several threads to keep updates fast."""
    with threads() as hashing:
        return checksum_of(hashing.map(digest, buckets_of(parts)))


def layout_checksum(names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """Return the checksum of tensor names, dtypes and shapes, in order: xxh3 (128 bits), in hexadecimal.

    It replaces the checksum of the bytes where no process sees all of them, which is the case in direct transfers.
    """
    layout = [list(names), list(dtype_names), [list(shape) for shape in shapes]]
    return xxhash.xxh3_128_hexdigest(json.dumps(layout, separators=(",", ":")).encode())


def threads() -> ThreadPoolExecutor:
    """Return a pool with one thread per core, at most eight, for work that releases the global interpreter lock."""
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))


class MappedFile:
    """Read-only memory map of a weight file, kept as long as the path leads to the same file.

    A node's workers overwrite the file in place with the next version, so its pages stay mapped across versions.
    """

    def __init__(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._content: Bytes = np.zeros(0, np.uint8)

    def tensors(self, path: Path, manifest: WeightsManifest) -> dict[str, torch.Tensor]:
        """Verify the file and return its tensors as views of the mapping.

        Copy the tensors before reporting the version as loaded: the file may be overwritten after that.

        Raises:
            WeightsMismatchError: The file's size or checksum differs from the manifest.
        """
        self._map(path)
        if len(self._content) != manifest.num_bytes:
            raise WeightsMismatchError(
                f"version {manifest.version}: expected {manifest.num_bytes} bytes in {path}; got {len(self._content)}"
            )
        found = checksum([self._content])
        if found != manifest.checksum:
            raise WeightsMismatchError(
                f"version {manifest.version}: expected checksum {manifest.checksum} for {path}; got {found}"
            )
        return _tensors_in(self._content)

    def _map(self, path: Path) -> None:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = status.st_ino, status.st_size
            if identity != self._identity:
                self._content = (
                    np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                    if status.st_size
                    else np.zeros(0, np.uint8)
                )
                self._identity = identity


def _tensors_in(content: Bytes) -> dict[str, torch.Tensor]:
    [header_bytes] = struct.unpack("<Q", content[:8].tobytes())
    entries = json.loads(content[8 : 8 + header_bytes].tobytes())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # never written
        data = torch.from_numpy(content[8 + header_bytes :])
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        tensors[name] = data[start:end].view(_TORCH_TYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
