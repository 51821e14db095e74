"""Fetched copies: checksums, reuse and a shared cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlad.errors import CorruptModelError
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion

NAME = "kk-student"


def test_corrupt_file_is_not_fetched(
    add: Callable[..., ModelVersion],
    write: Callable[[ModelRegistry, str, bytes], None],
    registry: ModelRegistry,
    model: Path,
    tmp_path: Path,
) -> None:
    version = add(registry, "a", model)
    write(registry, f"{version.directory}/model.safetensors", b"weightz")
    with pytest.raises(
        CorruptModelError, match=r"model\.safetensors of kk-student@1 .* does not match its manifest: expected 7 bytes"
    ):
        registry.fetch(NAME, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    registry.store.delete_file(f"{version.directory}/config.json")
    write(registry, f"{version.directory}/model.safetensors", b"weights")
    with pytest.raises(CorruptModelError, match=r"kk-student@1 .* lacks config\.json"):
        registry.fetch(NAME, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_intact_fetched_copy_is_reused(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path, tmp_path: Path
) -> None:
    version = add(registry, "a", model)
    fetched = registry.fetch(NAME, 1, tmp_path / "cache")
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()} == {
        file.path for file in version.files
    }
    inode = (fetched / "model.safetensors").stat().st_ino
    assert registry.fetch(NAME, "latest", tmp_path / "cache") == fetched
    assert (fetched / "model.safetensors").stat().st_ino == inode
    (fetched / "model.safetensors").write_bytes(b"weightz")
    assert registry.fetch(NAME, 1, tmp_path / "cache") == fetched
    assert (fetched / "model.safetensors").read_bytes() == b"weights"
    assert list((tmp_path / "cache").iterdir()) == [fetched]


def test_versions_of_two_registries_can_share_a_cache(
    add: Callable[..., ModelVersion], export: Callable[..., Path], tmp_path: Path
) -> None:
    contents = []
    for place in ("one", "two"):
        registry = ModelRegistry.open(str(tmp_path / place))
        add(registry, "a", export(tmp_path / f"export-{place}", weights=place.encode()))
        contents.append(registry.fetch(NAME, 1, tmp_path / "cache"))
    assert [(path / "model.safetensors").read_bytes() for path in contents] == [b"one", b"two"]
