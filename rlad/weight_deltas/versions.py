"""Deltas between whole versions of a weight file: made by the publisher, applied to the file of a node."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Event

import numpy as np

from rlad.errors import WeightsMismatchError
from rlad.weight_deltas.encoding import EncodedBucket, Section, apply_bucket, encode_bucket, require_intact
from rlad.weight_file import BUCKET_BYTES, Bytes, threads


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightDelta:
    """Delta from one version of a weight file to the next.

    Attributes:
        digests: Digests of the new version's buckets, in order.
        buckets: Encodings of the buckets that changed.
        changed: Places of the tensors that changed, in the file's order, ascending.
    """

    digests: tuple[bytes, ...]
    buckets: tuple[Bytes, ...]
    changed: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)


class LastVersion:
    """Copy of the last published weight file in this process's memory, from which the next delta is computed."""

    def __init__(self) -> None:
        self._content: Bytes | None = None

    def replace(self, parts: Sequence[Bytes]) -> None:
        """Copy a whole version.

        Args:
            parts: Parts of the file, as `safetensors_parts` returns them.
        """
        size = sum(len(part) for part in parts)
        content, self._content = self._content, None
        if content is None or len(content) != size:
            content = np.empty(size, np.uint8)
        copies: list[Future[None]] = []
        start = 0
        with threads() as copying:
            for part in parts:
                for cut in range(0, len(part), BUCKET_BYTES):
                    piece = part[cut : cut + BUCKET_BYTES]
                    copies.append(copying.submit(np.copyto, content[start : start + len(piece)], piece))
                    start += len(piece)
            for copied in copies:
                copied.result()
        self._content = content

    def advance(self, parts: Sequence[Bytes], *, max_bytes: int) -> WeightDelta | None:
        """Encode what differs from the copy, and update the copy.

        Args:
            parts: Parts of the new version, as `safetensors_parts` returns them.
            max_bytes: Largest size of the delta.

        Returns:
            The delta. None if there is no copy, the layout differs, or the delta would be larger than `max_bytes` or
            than is worthwhile; there is no copy then until `replace` is called.
        """
        content, self._content = self._content, None
        header = parts[0]
        if (
            content is None
            or len(content) != sum(len(part) for part in parts)
            or not np.array_equal(content[: len(header)], header)
        ):
            return None
        buckets = _sections(content, parts)
        too_large = Event()

        def encode(index: int) -> EncodedBucket | None:
            return None if too_large.is_set() else encode_bucket(index, buckets[index])

        encoded: list[EncodedBucket] = []
        room = max_bytes
        with threads() as encoding:
            for result in [encoding.submit(encode, index) for index in range(len(buckets))]:
                bucket = result.result()
                room -= 0 if bucket is None else len(bucket.content)
                if bucket is None or room < 0:
                    too_large.set()
                    return None
                encoded.append(bucket)
        self._content = content
        return WeightDelta(
            digests=tuple(bucket.digest for bucket in encoded),
            buckets=tuple(bucket.content for bucket in encoded if len(bucket.content)),
            changed=tuple(sorted({tensor for bucket in encoded for tensor in bucket.changed})),
        )


def apply_delta(content: Bytes, buckets: Sequence[Bytes]) -> None:
    """Change a file's content to the next version. If this is interrupted, the content is of no version.

    The caller verifies the checksum of the result: a delta that is applied to another version than its base gives a
    wrong file.

    Args:
        content: The whole file, writable.
        buckets: Encodings of the buckets that changed.

    Raises:
        WeightsMismatchError: A bucket is corrupt, which leaves the content unchanged, or does not fit the file.
    """
    with threads() as applying:
        for done in [applying.submit(require_intact, bucket) for bucket in buckets]:
            done.result()
        for done in [applying.submit(apply_bucket, content, bucket) for bucket in buckets]:
            done.result()


def _sections(content: Bytes, parts: Sequence[Bytes]) -> list[list[Section]]:
    """Return the sections of each bucket, from a writable copy of the earlier version and the parts of the new one."""
    buckets: list[list[Section]] = [[] for _ in range(-(-len(content) // BUCKET_BYTES))]
    start = 0
    for place, (part, element_bytes) in enumerate(zip(parts, [1, *_element_sizes(parts[0])], strict=True)):
        for first, last in _cuts(start, start + len(part)):
            buckets[first // BUCKET_BYTES].append(
                Section(
                    tensor=place - 1,
                    offset=first,
                    element_bytes=element_bytes,
                    old=content[first:last],
                    new=part[first - start : last - start],
                )
            )
        start += len(part)
    return buckets


def _cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range of a file at the ends of buckets."""
    while start < stop:
        end = min(stop, (start // BUCKET_BYTES + 1) * BUCKET_BYTES)
        yield start, end
        start = end


def _element_sizes(header: Bytes) -> Iterator[int]:
    """Yield the element size of each tensor in the header of a safetensors file; 1 for an empty tensor.

    Raises:
        WeightsMismatchError: An element size is not 1, 2, 4 or 8 bytes.
    """
    (length,) = struct.unpack("<Q", header[:8].tobytes())
    for name, entry in json.loads(header[8 : 8 + length].tobytes()).items():
        start, end = entry["data_offsets"]
        size = (end - start) // math.prod(entry["shape"]) if end > start else 1
        if size not in (1, 2, 4, 8):
            raise WeightsMismatchError(f"weight {name} has elements of {size} bytes; expected 1, 2, 4 or 8")
        yield size
