"""Publication of weights through the object store: full versions, which reuse unchanged buckets, and deltas."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load

from actors.messages import WeightsPublication
from actors.weights.publish import DeltaPublisher, publish
from rlad.weight_deltas.versions import apply_delta
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


def bfloat16_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(20_000, generator=generator).bfloat16() for name in ("a", "b", "c")}


def after_deltas(publication: WeightsPublication) -> np.ndarray:
    """Return the content of the file after all deltas."""
    content = content_of(publication)
    for delta in publication.deltas:
        apply_delta(content, [bucket for part in ray.get(list(delta.refs), timeout=30) for bucket in part])
    return content


def test_versions_between_two_full_ones_are_deltas() -> None:
    publisher, weights = DeltaPublisher(full_every=3), bfloat16_weights()
    refs, lengths = [], []
    for version in range(5):
        if version:
            weights["abc"[version % 3]][version] += 1
        publication = publisher.publish(weights, version)
        refs.append(publication.buckets[0].ref)
        lengths.append(len(publication.deltas))
        content = after_deltas(publication)
        assert np.array_equal(content, content_of(publish(weights, version)))
        assert publication.manifest == publish(weights, version).manifest
        assert publication.checksums[-1] == publication.manifest.checksum == checksum([content])
        assert publication.checksums[0] == checksum([content_of(publication)])
        assert publication.digests == tuple(bucket.digest for bucket in publish(weights, version).buckets)
    assert lengths == [0, 1, 2, 0, 1]
    assert refs[0] == refs[1] == refs[2] != refs[3] == refs[4]


def test_tensors_that_changed_are_known_along_the_deltas() -> None:
    publisher, weights = DeltaPublisher(full_every=10), bfloat16_weights()
    publications = [publisher.publish(weights, 0)]
    for version, name in enumerate("cab", start=1):
        weights[name][3] += 1
        publications.append(publisher.publish(weights, version))
    checksums = [publication.manifest.checksum for publication in publications]
    newest = publications[-1]
    assert [newest.changed_since(checksum) for checksum in checksums] == [[0, 1, 2], [0, 1], [1], []]
    assert newest.changed_since("") is None
    assert publications[0].changed_since(checksums[0]) is None, "a full version does not say what changed"


def test_version_of_which_most_changed_is_published_in_full_with_some_after_it() -> None:
    publisher, weights = DeltaPublisher(full_every=3), {"w": torch.zeros(1 << 20)}
    publisher.publish(weights, 0)
    weights["w"] += 1
    lengths = []
    for version in range(1, 6):
        publication = publisher.publish(weights, version)
        lengths.append(len(publication.deltas))
        assert np.array_equal(after_deltas(publication), content_of(publish(weights, version)))
        weights["w"][:9] += 1
    assert lengths == [0, 0, 0, 1, 2], "the dense version, two after it, then deltas again"


def test_deltas_that_together_exceed_the_full_version_are_not_published() -> None:
    generator = torch.Generator().manual_seed(0)
    publisher, weights = DeltaPublisher(full_every=100), {"w": torch.randn(10_000, generator=generator)}
    lengths, total = [], 0
    for version in range(8):
        publication = publisher.publish(weights, version)
        lengths.append(len(publication.deltas))
        total = sum(delta.num_bytes for delta in publication.deltas)
        assert total <= publication.manifest.num_bytes
        weights["w"][: 10_000 // 2] = torch.randn(10_000 // 2, generator=generator)
    assert lengths == [0, 1, 2, 0, 1, 2, 0, 1]


def test_every_version_is_full_on_request() -> None:
    publisher, weights = DeltaPublisher(full_every=1), bfloat16_weights()
    for version in range(3):
        weights["a"][0] += 1
        publication = publisher.publish(weights, version)
        assert publication.deltas == ()
        assert publication.manifest == publish(weights, version).manifest
