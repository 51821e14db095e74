"""The way of new weights from the learner to the samplers, where they go through the object store.

They are put there in buckets of 64 MiB, of which only those are new that have changed; and on every node one file in shared memory, which all engines of
the node map, is brought up to date with them (`NodeWeights`). An engine's process is no Ray worker and cannot read the object store. Checksums travel with
the references; an engine compares them with the bytes that it mapped before it loads them.

Behind the gathered tensors there are two copies of the weights on a node, the objects and the file.
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
        tensors: by their names in the Hugging Face state dict, tied ones under one name or several.
        version: of the policy, a count of trained steps.
        earlier: what this process published before: buckets that are in it are not put again.
    """
    parts = safetensors_parts(tensors)
    known = {bucket.digest: bucket for bucket in earlier.buckets} if earlier else {}
    buckets: list[WeightsBucket] = []
    contents = list(buckets_of(parts))
    with threads() as hashing:  # while those before are being put
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
