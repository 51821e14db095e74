"""The file that weights travel as: safetensors, known by the checksums of its buckets, and mapped by those who load it.

What is put together of tensors is a header and the tensors' own memory, never a serialised whole.
"""

from __future__ import annotations

import json
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
            raise EngineError(
                f"weights of type {tensor.dtype} cannot be published, {name} is: there are {', '.join(map(str, _SAFETENSORS_TYPES))}"
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
    """The bytes end to end, however they are cut into parts, in buckets of 64 MiB: each as views of the parts that it is made of."""
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
    """Of a bucket: xxh3, 128 bits."""
    hashing = xxhash.xxh3_128()
    for part in bucket:
        hashing.update(part.data)
    return hashing.digest()


def checksum_of(digests: Iterable[bytes]) -> str:
    """Of a file, from the digests of its buckets: xxh3 over them, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def checksum(parts: Iterable[Bytes]) -> str:
    """Of the bytes end to end. Buckets are hashed on several threads, so that every engine can afford it at every update."""
    with threads() as hashing:
        return checksum_of(hashing.map(digest, buckets_of(parts)))


def layout_checksum(names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """Of what tensors are without their values, in their order: xxh3 (128 bits) in hexadecimal. Stands for the bytes where nobody sees all of them."""
    layout = [list(names), list(dtype_names), [list(shape) for shape in shapes]]
    return xxhash.xxh3_128_hexdigest(json.dumps(layout, separators=(",", ":")).encode())


def threads() -> ThreadPoolExecutor:
    """As many as there are cores, up to eight, for work that lets go of the interpreter's lock."""
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))


class MappedFile:
    """The file that a process loads weights from, mapped for as long as it stays the same file.

    A node's workers write the next version over the last one: pages that a process has mapped before cost it nothing then.
    """

    def __init__(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._content: Bytes = np.zeros(0, np.uint8)

    def tensors(self, path: Path, manifest: WeightsManifest) -> dict[str, torch.Tensor]:
        """What was published, as views of the mapping: to be copied before anybody is told that they are loaded.

        Raises:
            WeightsMismatchError: the file's size or checksum is another.
        """
        self._map(path)
        if len(self._content) != manifest.num_bytes:
            raise WeightsMismatchError(
                f"version {manifest.version}: {manifest.num_bytes} bytes were published, {path} has {len(self._content)}"
            )
        found = checksum([self._content])
        if found != manifest.checksum:
            raise WeightsMismatchError(
                f"version {manifest.version}: published with checksum {manifest.checksum}, {path} has {found}"
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
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to them
        data = torch.from_numpy(content[8 + header_bytes :])
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        tensors[name] = data[start:end].view(_TORCH_TYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
