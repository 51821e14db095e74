"""Publication of weights through the object store.

A full version is stored as buckets of 64 MiB, of which only those are put that changed since the last full version. The
versions between two full ones are exact deltas: the elements that changed, compressed (`rlad.weight_deltas`). Each node
keeps one file in shared memory, which its engines map and which is updated in place (`NodeWeights`): an engine process
is not a Ray worker and cannot read the object store. A publication carries the checksum of the file; an engine verifies
the mapped bytes before it loads them.

Peak host memory per node: twice the model size (objects and file), plus the gathered tensors on the learner's node, and
with deltas a copy of the last version there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import ray
import torch

from actors.messages import PublishedDelta, WeightsBucket, WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.weight_deltas.versions import LastVersion, WeightDelta
from rlad.weight_file import Bytes, buckets_of, checksum_of, digest, safetensors_parts, threads

logger = logging.getLogger(__name__)

# Bytes of encoded buckets in one object, at least. Nodes pass on whole objects, so several small ones spread faster.
_PART_BYTES = 8 << 20


def publish(
    tensors: Mapping[str, torch.Tensor], version: int, *, earlier: WeightsPublication | None = None
) -> WeightsPublication:
    """Put a model's weights into the object store, as a full version.

    Args:
        tensors: Weights by Hugging Face state-dict name. Tied weights may appear under one name or several.
        version: Policy version, the number of trained steps.
        earlier: Previous publication of this process. Its buckets are reused where the content is the same.
    """
    return _publish_full(safetensors_parts(tensors), version, earlier)


class DeltaPublisher:
    """Publisher of a sequence of versions: full ones, and deltas between them.

    A version is published in full if it is the first, if deltas would take `full_every` versions or more bytes than the
    full version since the last full one, or if more than half of the elements of a bucket changed. If that happens
    directly after a full version, as with float32 weights, the next `full_every` versions are full too.
    """

    def __init__(self, full_every: int) -> None:
        """
        Args:
            full_every: Number of versions from one full version to the next. With 1 every version is full, and no copy
                of the last version is kept.
        """
        self._full_every = full_every
        self._last = LastVersion()
        self._newest: WeightsPublication | None = None
        # Versions for which no delta is tried and no copy is kept.
        self._without_deltas = 0

    def publish(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightsPublication:
        """Put the next version into the object store. Args as for `publish`."""
        parts = safetensors_parts(tensors)
        newest, self._newest = self._newest, None  # after an error the next version is full
        publication = self._next_delta(parts, version, newest) if newest else None
        if publication is None:
            publication = _publish_full(parts, version, newest)
            self._without_deltas = max(0, self._without_deltas - 1)
            if self._full_every > 1 and not self._without_deltas:
                self._last.replace(parts)
        self._newest = publication
        return publication

    def _next_delta(
        self, parts: Sequence[Bytes], version: int, newest: WeightsPublication
    ) -> WeightsPublication | None:
        if self._without_deltas or len(newest.deltas) + 1 >= self._full_every:
            return None
        room = newest.manifest.num_bytes - sum(delta.num_bytes for delta in newest.deltas)
        delta = self._last.advance(parts, max_bytes=room)
        if delta is not None:
            return _publish_delta(delta, version, newest)
        if not newest.deltas:
            self._without_deltas = self._full_every
        return None


def _publish_full(parts: Sequence[Bytes], version: int, earlier: WeightsPublication | None) -> WeightsPublication:
    known = {bucket.digest: bucket for bucket in earlier.buckets} if earlier else {}
    buckets: list[WeightsBucket] = []
    contents = list(buckets_of(parts))
    with threads() as hashing:  # hashes the next buckets while the current one is put
        for content, found in zip(contents, hashing.map(digest, contents), strict=True):
            if found not in known:
                known[found] = WeightsBucket(digest=found, ref=ray.put(content))
            buckets.append(known[found])
    digests = tuple(bucket.digest for bucket in buckets)
    manifest = WeightsManifest(
        version=version, checksum=checksum_of(digests), num_bytes=sum(len(part) for part in parts)
    )
    return WeightsPublication(
        manifest=manifest, buckets=tuple(buckets), full_checksum=manifest.checksum, digests=digests
    )


def _publish_delta(delta: WeightDelta, version: int, newest: WeightsPublication) -> WeightsPublication:
    mask = sum(1 << place for place in delta.changed)
    published = PublishedDelta(
        checksum=checksum_of(delta.digests),
        changed=mask.to_bytes(-(-mask.bit_length() // 8), "little"),
        num_bytes=delta.num_bytes,
        refs=tuple(ray.put(part) for part in _in_parts(delta.buckets)),
    )
    num_bytes = newest.manifest.num_bytes
    logger.info(
        "weights=delta policy_version=%d bytes=%d share=%.4f tensors=%d",
        version,
        delta.num_bytes,
        delta.num_bytes / num_bytes,
        len(delta.changed),
    )
    return replace(
        newest,
        manifest=WeightsManifest(version=version, checksum=published.checksum, num_bytes=num_bytes),
        deltas=(*newest.deltas, published),
        digests=delta.digests,
    )


def _in_parts(buckets: Sequence[Bytes]) -> Iterator[list[Bytes]]:
    """Yield the encoded buckets in order, in lists of `_PART_BYTES` or a little more."""
    part: list[Bytes] = []
    for bucket in buckets:
        part.append(bucket)
        if sum(map(len, part)) >= _PART_BYTES:
            yield part
            part = []
    if part:
        yield part
