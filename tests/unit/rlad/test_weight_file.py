"""Weight file: safetensors format, checksum over buckets, and memory mapping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load, save, save_file

from rlad.contracts import WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError
from rlad.weight_file import (
    BUCKET_BYTES,
    MappedFile,
    buckets_of,
    checksum,
    checksum_of,
    digest,
    safetensors_parts,
    weight_bytes,
)

TENSORS = {
    "narrow": torch.tensor([1, 2, 3], dtype=torch.bfloat16),
    "wide": torch.arange(6.0).reshape(2, 3),
    "another": torch.arange(4.0, dtype=torch.float64),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
    "größe": torch.ones(1),
}


def file_of(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(part.tobytes() for part in safetensors_parts(tensors))


def test_parts_form_the_file_of_the_safetensors_library() -> None:
    assert file_of(TENSORS) == save(TENSORS)


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.float16, torch.int16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool],
    ids=str,
)
def test_every_dtype_is_read_back(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    back = load(file_of({"w": tensor, "other": torch.ones(3)}))["w"]
    assert back.dtype == dtype
    assert torch.equal(back.float(), tensor.float())


def test_dtype_outside_the_format_is_refused() -> None:
    with pytest.raises(
        EngineError, match=r"weight w has dtype torch\.complex64, which cannot be published; supported: torch\."
    ):
        safetensors_parts({"w": torch.zeros(1, dtype=torch.complex64)})


def test_parts_are_views_of_the_tensors_memory() -> None:
    tensor = torch.zeros(5)
    _, view = safetensors_parts({"w": tensor})
    tensor[0] = 1
    assert view.view(np.float32).tolist() == [1, 0, 0, 0, 0]


def test_tied_weights_are_stored_once_under_their_first_name() -> None:
    shared = torch.ones(2, 2)
    assert list(load(file_of({"embed": shared, "head": shared}))) == ["embed"]


def test_transposed_view_is_stored_by_its_values() -> None:
    weight = torch.arange(4.0).reshape(2, 2)
    back = load(file_of({"w": weight, "w_transposed": weight.T}))
    assert back["w_transposed"].tolist() == [[0, 2], [1, 3]]


def test_checksum_is_xxh3_over_the_xxh3_of_each_bucket() -> None:
    """The content has two buckets, of 64 MiB and 5 bytes. Their borders do not depend on those of the parts."""
    content = np.random.default_rng(0).integers(0, 256, BUCKET_BYTES + 5, np.uint8)
    expected = xxhash.xxh3_128(
        b"".join(xxhash.xxh3_128(part.tobytes()).digest() for part in (content[:-5], content[-5:]))
    ).hexdigest()
    assert checksum([content]) == checksum_of(map(digest, buckets_of([content]))) == expected
    assert checksum([content[:7], content[7:7], content[7 : 9 << 20], content[9 << 20 :]]) == expected
    content[-1] ^= 1
    assert checksum([content]) != expected


def test_checksum_depends_on_the_order_of_buckets() -> None:
    first, second = (np.full(BUCKET_BYTES, value, np.uint8) for value in (1, 2))
    assert checksum([first, second]) != checksum([second, first])


def write(path: Path, tensors: dict[str, torch.Tensor]) -> WeightsManifest:
    content = file_of(tensors)
    path.write_bytes(content)
    return WeightsManifest(version=4, checksum=checksum([np.frombuffer(content, np.uint8)]), num_bytes=len(content))


def test_mapped_tensors_equal_the_published_ones(tmp_path: Path) -> None:
    found = MappedFile().tensors(tmp_path / "w", write(tmp_path / "w", TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_file_that_differs_from_its_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    manifest = write(path, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        WeightsMismatchError, match=f"version 4: expected {len(content)} bytes in .*; got {len(content) - 1}"
    ):
        MappedFile().tensors(path, manifest)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsMismatchError, match=f"version 4: expected checksum {manifest.checksum}"):
        MappedFile().tensors(path, manifest)
    path.write_bytes(b"")
    with pytest.raises(WeightsMismatchError, match="; got 0"):
        MappedFile().tensors(path, manifest)


def test_next_version_is_read_from_the_same_file_and_from_another(tmp_path: Path) -> None:
    path, mapped = tmp_path / "w", MappedFile()
    for value in (1.0, 2.0):
        manifest = write(path, {"w": torch.full((3,), value)})
        assert mapped.tensors(path, manifest)["w"].tolist() == [value] * 3
    (tmp_path / "other").write_bytes(path.read_bytes())
    manifest = write(tmp_path / "other", {"w": torch.full((3,), 3.0)})
    path.unlink()
    assert mapped.tensors(tmp_path / "other", manifest)["w"].tolist() == [3.0] * 3


def test_size_of_a_model_is_read_from_the_headers_of_its_files(tmp_path: Path) -> None:
    for number, (rows, columns) in enumerate([(3, 5), (7, 11)]):
        save_file({"a": torch.zeros(rows, columns), f"b{number}": torch.zeros(2)}, tmp_path / f"{number}.safetensors")
    elements = 3 * 5 + 7 * 11 + 2 * 2
    assert weight_bytes(tmp_path, "bfloat16") == 2 * elements
    assert weight_bytes(tmp_path, "float32") == 4 * elements
