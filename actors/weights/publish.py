"""Publication of weights through the object store.

The weights are stored as buckets of 64 MiB. A new version puts only the buckets that changed. Each node keeps one file
in shared memory, which its engines map and which is updated with the changed buckets (`NodeWeights`): an engine process
is not a Ray worker and cannot read the object store. A publication carries the checksum of the file; an engine verifies
the mapped bytes before it loads them.

Peak host memory per node: twice the model size (objects and file), plus the gathered tensors on the learner's node.
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
import torch

from actors.messages import WeightsBucket, WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.weight_file import buckets_of, checksum_of, digest, safetensors_parts, threads


def publish(
    tensors: Mapping[str, torch.Tensor], version: int, *, earlier: WeightsPublication | None = None
) -> WeightsPublication:
    """Put a model's weights into the object store.

    Args:
        tensors: Weights by Hugging Face state-dict name. Tied weights may appear under one name or several.
        version: Policy version, the number of trained steps.
        earlier: Previous publication of this process. Its buckets are reused where the content is the same.
    """
    parts = safetensors_parts(tensors)
    known = {bucket.digest: bucket for bucket in earlier.buckets} if earlier else {}
    buckets: list[WeightsBucket] = []
    contents = list(buckets_of(parts))
    with threads() as hashing:  # hashes the next buckets while the current one is put
        for content, found in zip(contents, hashing.map(digest, contents), strict=True):
            if found not in known:
                known[found] = WeightsBucket(digest=found, ref=ray.put(content))
            buckets.append(known[found])
    manifest = WeightsManifest(
        version=version,
        checksum=checksum_of(bucket.digest for bucket in buckets),
        num_bytes=sum(len(part) for part in parts),
    )
    return WeightsPublication(manifest=manifest, buckets=tuple(buckets))
