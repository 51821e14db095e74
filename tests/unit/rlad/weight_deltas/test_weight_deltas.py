"""Weight deltas: every bit pattern is exact, and a delta that is corrupt or does not fit is refused."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlad.errors import WeightsMismatchError
from rlad.weight_deltas.encoding import _HEADER, _SECTION, Section, _codec, apply_bucket, encode_bucket
from rlad.weight_deltas.versions import LastVersion, WeightDelta, apply_delta
from rlad.weight_file import BUCKET_BYTES, Bytes, buckets_of, digest, safetensors_parts

Tensors = Mapping[str, torch.Tensor]

UNLIMITED = 1 << 40
DTYPES = [
    torch.float64,
    torch.int64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def content_of(tensors: Tensors) -> Bytes:
    return np.concatenate(safetensors_parts(tensors))


def delta_of(old: Tensors, new: Tensors, *, max_bytes: int = UNLIMITED) -> WeightDelta | None:
    last = LastVersion()
    last.replace(safetensors_parts(old))
    return last.advance(safetensors_parts(new), max_bytes=max_bytes)


def applied(old: Tensors, delta: WeightDelta | None) -> Bytes:
    assert delta is not None
    content = content_of(old)
    apply_delta(content, delta.buckets)
    return content


def bits(*patterns: int) -> torch.Tensor:
    """Return a bfloat16 tensor with the given bit patterns."""
    return torch.from_numpy(np.array(patterns, np.uint16).view(np.int16)).view(torch.bfloat16)


@st.composite
def versions(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Draw tensors of random bits, and a version of them in which some elements have other random bits."""
    old: dict[str, torch.Tensor] = {}
    new: dict[str, torch.Tensor] = {}
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    for number in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from(DTYPES))
        elements = draw(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 63, 300, 5000]))
        size = dtype.itemsize
        raw = generator.integers(0, 2 if dtype == torch.bool else 256, elements * size, np.uint8)
        other = raw.copy()
        changed = generator.random(elements) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
        mask = np.repeat(changed, size)
        other[mask] = generator.integers(0, 2 if dtype == torch.bool else 256, int(mask.sum()), np.uint8)
        for tensors, data in ((old, raw), (new, other)):
            # Empty tensors get shapes of their own; the file would hold equal ones once.
            tensors[f"t{number}"] = (
                torch.from_numpy(data).view(dtype) if elements else torch.empty(0, number + 1, dtype=dtype)
            )
    return old, new


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(versions())
def test_applied_delta_gives_exactly_the_new_file(pair: tuple[Tensors, Tensors]) -> None:
    old, new = pair
    delta = delta_of(old, new)
    expected = content_of(new)
    assert np.array_equal(applied(old, delta), expected)
    assert delta is not None
    assert list(delta.digests) == [digest(bucket) for bucket in buckets_of([expected])]
    names = sorted(new, key=lambda name: (-new[name].element_size(), name))
    changed = [
        place
        for place, name in enumerate(names)
        if not torch.equal(old[name].view(torch.uint8), new[name].view(torch.uint8))
    ]
    assert list(delta.changed) == changed


def test_bit_patterns_of_nan_and_negative_zero_survive() -> None:
    old = {"w": bits(0x0000, 0x7FC0, 0x7FC1, 0xFF80, 0x3F80, 0x0001)}
    new = {"w": bits(0x8000, 0x7FC1, 0x7F81, 0x7F80, 0x3F81, 0x8001)}
    content = applied(old, delta_of(old, new))
    assert content[-12:].view(np.uint16).tolist() == [0x8000, 0x7FC1, 0x7F81, 0x7F80, 0x3F81, 0x8001]


def test_tied_weights_change_once() -> None:
    old, new = torch.zeros(64), torch.zeros(64)
    new[5] = 1
    delta = delta_of({"embed": old, "head": old}, {"embed": new, "head": new})
    assert delta is not None
    assert delta.changed == (0,)
    assert np.array_equal(applied({"embed": old}, delta), content_of({"embed": new}))


def test_unchanged_version_has_an_empty_delta() -> None:
    tensors = {"w": torch.ones(9)}
    delta = delta_of(tensors, tensors)
    assert delta is not None
    assert (delta.buckets, delta.changed, delta.num_bytes) == ((), (), 0)
    assert np.array_equal(applied(tensors, delta), content_of(tensors))


def test_elements_on_both_sides_of_a_bucket_border_change() -> None:
    """The border is inside the tensor, at a multiple of the element size but not of the tensor's rows."""
    old = torch.zeros(BUCKET_BYTES // 2 + 1000, dtype=torch.bfloat16)
    new = old.clone()
    header = len(safetensors_parts({"w": old})[0])
    border = (BUCKET_BYTES - header) // 2
    new[[0, border - 1, border, -1]] = 2
    delta = delta_of({"w": old}, {"w": new})
    assert delta is not None
    assert len(delta.buckets) == 2
    assert np.array_equal(applied({"w": old}, delta), content_of({"w": new}))


def test_deltas_chain_from_the_copy_of_the_last_version() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(5000, generator=generator).bfloat16(), "b": torch.randn(3, generator=generator)}
    last, content = LastVersion(), content_of(tensors)
    last.replace(safetensors_parts(tensors))
    for step in range(4):
        tensors["a"][step * 7] += 1
        tensors["b"][step % 3] -= 1
        delta = last.advance(safetensors_parts(tensors), max_bytes=UNLIMITED)
        assert delta is not None
        apply_delta(content, delta.buckets)
        assert np.array_equal(content, content_of(tensors))


def test_few_changed_elements_of_bfloat16_take_few_bytes() -> None:
    """1 of 100 elements moves by one unit: 8.1 bits for a position and one for the sign, of 1,600 bits."""
    generator = np.random.default_rng(0)
    old = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    new = old.clone()
    places = generator.choice(len(old), len(old) // 100, replace=False)
    new.view(torch.int16)[places] += torch.from_numpy(generator.choice(np.array([-1, 1], np.int16), len(places)))
    delta = delta_of({"w": old}, {"w": new})
    assert delta is not None
    assert 9.0 / 1600 < delta.num_bytes / old.nbytes < 12 / 1600


def test_no_delta_without_a_copy_or_for_another_layout() -> None:
    last, tensors = LastVersion(), {"w": torch.zeros(8)}
    assert last.advance(safetensors_parts(tensors), max_bytes=UNLIMITED) is None
    for other in ({"v": torch.zeros(8)}, {"w": torch.zeros(4, 2)}, {"w": torch.zeros(9)}):
        assert delta_of(tensors, other) is None


def test_delta_above_its_limit_is_not_made_and_ends_the_chain() -> None:
    old, new = {"w": torch.zeros(4000)}, {"w": torch.arange(4000.0)}
    delta = delta_of(old, new)
    assert delta is not None
    assert delta_of(old, new, max_bytes=delta.num_bytes) is not None
    last = LastVersion()
    last.replace(safetensors_parts(old))
    assert last.advance(safetensors_parts(new), max_bytes=delta.num_bytes - 1) is None
    assert last.advance(safetensors_parts(new), max_bytes=UNLIMITED) is None, "the copy is between two versions"
    last.replace(safetensors_parts(new))
    assert last.advance(safetensors_parts(new), max_bytes=UNLIMITED) is not None


@pytest.mark.parametrize(("changed", "is_encoded"), [(1 << 19, True), ((1 << 19) + 1, False)])
def test_bucket_of_which_more_than_half_changed_is_not_encoded(changed: int, is_encoded: bool) -> None:
    old = torch.zeros(1 << 20, dtype=torch.uint8)
    new = old.clone()
    new[:changed] = 1
    assert (delta_of({"w": old}, {"w": new}) is not None) == is_encoded


@pytest.mark.parametrize("place", [0, 15, 16, 20, 40, -1])
def test_corrupt_delta_is_refused_and_the_file_unchanged(place: int) -> None:
    old, new = {"w": torch.zeros(300)}, {"w": torch.ones(300)}
    delta = delta_of(old, new)
    assert delta is not None
    content = content_of(old)
    broken = delta.buckets[0].copy()
    broken[place] ^= 1
    for buckets in ([broken], [delta.buckets[0], broken], [delta.buckets[0][:-1]], [delta.buckets[0][:5]]):
        with pytest.raises(WeightsMismatchError, match="is corrupt: its checksum does not match"):
            apply_delta(content, buckets)
        assert np.array_equal(content, content_of(old))


def test_delta_of_another_file_is_refused() -> None:
    delta = delta_of({"w": torch.zeros(300)}, {"w": torch.ones(300)})
    assert delta is not None
    with pytest.raises(WeightsMismatchError, match=r"not in bucket 0 of a file of 1\d\d bytes"):
        apply_delta(content_of({"w": torch.zeros(9)}), delta.buckets)


def test_position_behind_the_end_of_its_tensor_is_refused() -> None:
    old, new = np.zeros(4, np.uint8), np.array([0, 0, 0, 1], np.uint8)
    encoded = encode_bucket(0, [Section(tensor=0, offset=0, element_bytes=1, old=old, new=new)])
    assert encoded is not None
    body = encoded.content[16:].tobytes()
    form, index, sections, size = _HEADER.unpack(body[: _HEADER.size])
    raw = bytearray(_codec().decompress(body[_HEADER.size :], decompressed_size=size, asbytes=True))
    raw[_SECTION.size] = 4  # the gap in front of the changed element
    forged = struct.pack(_HEADER.format, form, index, sections, size) + _codec().compress(bytes(raw), asbytes=True)
    with pytest.raises(WeightsMismatchError, match="changes element 4 of 4"):
        apply_bucket(np.zeros(4, np.uint8), np.frombuffer(xxhash.xxh3_128_digest(forged) + forged, np.uint8))
