"""Encoding of the elements that changed in one bucket of a weight file.

Elements are treated as unsigned integers of the same size, so every bit pattern is exact, NaN payloads and -0.0 too.
For each part of a tensor in the bucket the encoding has the gaps between the positions of changed elements, and the
differences between new and old bit patterns, modulo 2^bits. An update moves most elements of bfloat16 by one unit in
the last place, so that a difference has about one bit. Both are split into planes of equal significance and compressed
with zstd.

    bucket  = xxh3 (128 bits) of the rest, header, zstd(section table, planes of each section)
    section = offset in the file, number of elements and of changed ones, element size, number of planes
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import xxhash

from rlad.errors import WeightsMismatchError
from rlad.weight_file import BUCKET_BYTES, Bytes

Unsigned = npt.NDArray[Any]
"""Array of unsigned integers."""

_DIGEST_BYTES = 16
_HEADER = struct.Struct("<4sIIQ")  # format, index of the bucket, number of sections, bytes before compression
_SECTION = struct.Struct("<QIIBBB")  # offset, elements, changed elements, element size, planes of gaps, of differences
_FORMAT = b"RWD1"
_LEVEL = 1
_WORD_BYTES = 8
# Bytes that are hashed and compared at once. They stay in the processor's cache in between.
_CHUNK_BYTES = 1 << 20
# Share of changed elements above which a bucket is not encoded.
_DENSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """Part of a tensor that lies in one bucket.

    Attributes:
        tensor: Place of the tensor in the file's order; -1 for the file's header.
        offset: Offset in the file, in bytes.
        element_bytes: Size of an element.
        old: Bytes of the earlier version, writable.
        new: Bytes of the new version.
    """

    tensor: int
    offset: int
    element_bytes: int
    old: Bytes
    new: Bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedBucket:
    """Encoded bucket.

    Attributes:
        digest: xxh3 (128 bits) of the bucket's new bytes.
        content: The encoding; empty if no element changed.
        changed: Places of the tensors with changed elements.
    """

    digest: bytes
    content: Bytes
    changed: tuple[int, ...]


def encode_bucket(index: int, sections: Sequence[Section]) -> EncodedBucket | None:
    """Encode the elements that changed, and set `old` of each section to `new`.

    Returns:
        The encoding; None if more than half of the elements changed. `old` is then set only in part.
    """
    hashing = xxhash.xxh3_128()
    table, planes, changed = bytearray(), bytearray(), []
    for section in sections:
        found = _changes(section, hashing)
        if found is None:
            return None
        positions, differences = found
        if not len(positions):
            continue
        changed.append(section.tensor)
        gaps = np.diff(positions, prepend=-1).astype(np.uint32) - np.uint32(1)
        split = [_planes(gaps), _planes(_fold(differences))]
        table += _SECTION.pack(
            section.offset,
            len(section.new) // section.element_bytes,
            len(positions),
            section.element_bytes,
            *(len(part) for part in split),
        )
        for part in split:
            planes += part.tobytes()
    if not changed:
        return EncodedBucket(digest=hashing.digest(), content=np.zeros(0, np.uint8), changed=())
    raw = bytes(table + planes)
    body = _HEADER.pack(_FORMAT, index, len(changed), len(raw)) + _codec().compress(raw, asbytes=True)
    content = np.frombuffer(xxhash.xxh3_128_digest(body) + body, np.uint8)
    return EncodedBucket(digest=hashing.digest(), content=content, changed=tuple(changed))


def require_intact(encoded: Bytes) -> None:
    """Check the checksum of an encoded bucket.

    Raises:
        WeightsMismatchError: The encoding was changed or cut off.
    """
    body = encoded[_DIGEST_BYTES:]
    if len(body) < _HEADER.size or xxhash.xxh3_128_digest(body.data) != encoded[:_DIGEST_BYTES].tobytes():
        raise WeightsMismatchError(f"a weight delta of {len(encoded)} bytes is corrupt: its checksum does not match")


def apply_bucket(content: Bytes, encoded: Bytes) -> None:
    """Change a file's content from the earlier version of a bucket to the new one. Not idempotent.

    Args:
        content: The whole file, writable.
        encoded: Intact encoding of the bucket.

    Raises:
        WeightsMismatchError: The encoding does not fit the file. Earlier sections of the bucket are applied.
    """
    body = encoded[_DIGEST_BYTES:]
    found, index, num_sections, raw_bytes = _HEADER.unpack(body[: _HEADER.size].tobytes())
    if found != _FORMAT:
        raise WeightsMismatchError(f"expected a weight delta of format {_FORMAT!r}; got {found!r}")
    raw = np.frombuffer(_codec().decompress(body[_HEADER.size :], decompressed_size=raw_bytes), np.uint8)
    place = num_sections * _SECTION.size
    for offset, elements, changed, element_bytes, *planes in _SECTION.iter_unpack(raw[:place].tobytes()):
        end = offset + elements * element_bytes
        if not index * BUCKET_BYTES <= offset <= end <= min(len(content), (index + 1) * BUCKET_BYTES):
            raise WeightsMismatchError(
                f"a weight delta changes bytes {offset} to {end}, which are not in bucket {index} of a file of "
                f"{len(content)} bytes"
            )
        sizes = [number * changed for number in planes]
        gaps, folded = (
            _joined(raw[start : start + size], changed, kind)
            for start, size, kind in (
                (place, sizes[0], np.dtype(np.uint32)),
                (place + sizes[0], sizes[1], np.dtype(f"u{element_bytes}")),
            )
        )
        place += sum(sizes)
        positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if positions[-1] >= elements:
            raise WeightsMismatchError(f"a weight delta changes element {positions[-1]} of {elements}")
        target = content[offset:end].view(f"u{element_bytes}")
        target[positions] += _unfold(folded)


def _changes(section: Section, hashing: Any) -> tuple[Unsigned, Unsigned] | None:
    """Return the positions of changed elements, int64 [C], and their differences, [C]; None if they are too many.

    Args:
        section: Part of a tensor. `old` is set to `new`.
        hashing: Hash object, updated with the new bytes.
    """
    positions, differences = [np.zeros(0, np.int64)], [np.zeros(0, f"u{section.element_bytes}")]
    changed = seen = 0
    for start in range(0, len(section.new), _CHUNK_BYTES):
        old, new = (part[start : start + _CHUNK_BYTES] for part in (section.old, section.new))
        hashing.update(new.data)
        # Whole words first: comparing them finds the few places that need a closer look.
        words = len(new) // _WORD_BYTES * _WORD_BYTES
        for first, last, step in ((0, words, _WORD_BYTES), (words, len(new), section.element_bytes)):
            for found, difference in _compare(old[first:last], new[first:last], step, section.element_bytes):
                positions.append(found + (start + first) // section.element_bytes)
                differences.append(difference)
                changed += len(found)
        seen += len(new) // section.element_bytes
        if changed > _DENSE * seen and len(section.new) >= _CHUNK_BYTES:
            return None
    return np.concatenate(positions), np.concatenate(differences)


def _compare(old: Bytes, new: Bytes, step: int, element_bytes: int) -> Iterator[tuple[Unsigned, Unsigned]]:
    """Yield the positions and differences of changed elements, if there are any, and copy them from new to old.

    Args:
        old, new: Bytes of equal lengths, a multiple of `step`.
        step: Bytes compared at once, a multiple of the element size.
        element_bytes: Size of an element.
    """
    before, after = old.view(f"u{step}"), new.view(f"u{step}")
    words = np.flatnonzero(before != after)
    if not len(words):
        return
    changed = after[words]
    difference = changed.view(f"u{element_bytes}") - before[words].view(f"u{element_bytes}")
    before[words] = changed
    elements = np.flatnonzero(difference)
    shift = (step // element_bytes).bit_length() - 1  # a division of each position would take longer
    yield (words[elements >> shift] << shift) + (elements & ((1 << shift) - 1)), difference[elements]


def _fold(differences: Unsigned) -> Unsigned:
    """Map differences 0, -1, 1, -2, 2, ... modulo 2^bits to 0, 1, 2, 3, 4, ..., so that small ones have zero planes."""
    negative = differences >> (8 * differences.itemsize - 1)
    folded: Unsigned = (differences << 1) ^ (~negative + differences.dtype.type(1))
    return folded


def _unfold(folded: Unsigned) -> Unsigned:
    """Reverse `_fold`."""
    negative = folded & 1
    differences: Unsigned = (folded >> 1) ^ (~negative + folded.dtype.type(1))
    return differences


def _planes(values: Unsigned) -> Bytes:
    """Return the bytes of values by significance, uint8 [P, C], low ones first, without zero planes at the end."""
    num_planes = max(1, -(-int(values.max()).bit_length() // 8))
    return np.ascontiguousarray(values.view(np.uint8).reshape(len(values), -1)[:, :num_planes].T)


def _joined(planes: Bytes, count: int, kind: np.dtype[Any]) -> Unsigned:
    """Reverse `_planes`: return `count` values of a type."""
    values = np.zeros((count, kind.itemsize), np.uint8)
    values[:, : len(planes) // count] = planes.reshape(-1, count).T
    return values.reshape(-1).view(kind)


def _codec() -> Any:
    return pyarrow.Codec("zstd", compression_level=_LEVEL)
