"""Publication of weights through the object store. Unchanged buckets are reused."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load

from actors.messages import WeightsPublication
from actors.weights.publish import publish
from rlad.weight_file import BUCKET_BYTES, checksum


def content_of(publication: WeightsPublication) -> np.ndarray:
    return np.concatenate([part for bucket in publication.buckets for part in ray.get(bucket.ref, timeout=30)])


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Weights of three buckets: an embedding of one and a half buckets, then a layer of one bucket."""
    return {"a.embedding": torch.rand(3 * BUCKET_BYTES // 8), "layer": torch.rand(BUCKET_BYTES // 4)}


def test_published_buckets_form_the_file_that_the_manifest_describes(weights: dict[str, torch.Tensor]) -> None:
    publication = publish(weights, 3)
    content = content_of(publication)
    assert (publication.manifest.version, publication.manifest.num_bytes, len(publication.buckets)) == (
        3,
        len(content),
        3,
    )
    assert publication.manifest.checksum == checksum([content])
    back = load(content.tobytes())
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_unchanged_buckets_are_reused_by_the_next_version(weights: dict[str, torch.Tensor]) -> None:
    first = publish(weights, 1)
    weights["layer"] += 1
    second = publish(weights, 2, earlier=first)
    assert [bucket in first.buckets for bucket in second.buckets] == [True, False, False]
    assert second.manifest.checksum == checksum([content_of(second)])
    third = publish(weights, 3, earlier=second)
    assert third.buckets == second.buckets
    assert (third.manifest.version, third.manifest.checksum) == (3, second.manifest.checksum)


def test_equal_buckets_are_put_once() -> None:
    publication = publish({"w": torch.zeros(4 * BUCKET_BYTES // 4)}, 1)
    assert len(publication.buckets) == 5
    assert len(set(publication.buckets)) == 3, "the first bucket with the header, the equal ones, and the last"
