"""Models in directories, registries and object stores: their locations, and copies on a node."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from rlad.errors import ModelNotFoundError, ModelUnreachableError, PlanError
from rlad.evaluation.accuracy import PromptResult, summarise
from rlad.models.locations import fetch_model, pin_model
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
    b'"b": "model-00002-of-00002.safetensors"}}',
    "optimizer.pt": b"not needed",
}
CONFIGURATION = ["config.json", "tokenizer.json"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "export"
    directory.mkdir()
    for name, content in FILES.items():
        if not name.endswith(".pt"):
            (directory / name).write_bytes(content)
    return directory


def registered(uri: str, *models: Path) -> ModelRegistry:
    """Return a registry with these models as the versions of `kk`; the first is in production."""
    registry = ModelRegistry.open(uri)
    result = PromptResult(prompt_id="p", groups=("2",), rewards=(1.0,), response_tokens=(3,), num_truncated=0)
    fields = dict.fromkeys(Lineage.__slots__, "") | {"num_prompts": 1, "steps": 1, "teachers": {}, "cost": None}
    for number, directory in enumerate(models):
        registry.add(
            "kk",
            directory,
            lineage=Lineage(**fields),
            evaluation=summarise([result]),
            idempotency_key=f"run-{number}",
        )
    registry.promote("kk", 1, expected=None, reason="test")
    return registry


def write_folder(uri: str, files: dict[str, bytes]) -> None:
    filesystem, root = fs.FileSystem.from_uri(uri)
    for name, content in files.items():
        with filesystem.open_output_stream(f"{root}/{name}") as file:
            file.write(content)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_is_its_own_location_and_must_hold_safetensors(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    pinned = pin_model("./export")
    assert (pinned.location, pinned.version, pinned.label) == (str(model), None, "./export")
    assert fetch_model(pinned.location) == model
    (model / "model-00002-of-00002.safetensors").unlink()
    assert fetch_model(pinned.location, weights=False) == model
    with pytest.raises(PlanError, match=r"lacks model-00002-of-00002.safetensors .* only safetensors weights are read"):
        fetch_model(pinned.location)
    with pytest.raises(PlanError, match="does not exist on this node: use a directory that all nodes share"):
        fetch_model(str(model / "elsewhere"))


def test_an_alias_is_pinned_to_the_number_of_its_version(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAD_REGISTRY", str(tmp_path / "registry"))
    registry = registered(str(tmp_path / "registry"), model, model)
    pinned = pin_model("registry:kk@production")
    assert (pinned.version, pinned.label) == ("1", "registry:kk@1")
    registry.promote("kk", 2, expected=1, reason="better")
    monkeypatch.delenv("RLAD_REGISTRY")  # another process of the run
    directory = registry.local_path(registry.get("kk", 1))
    assert directory is not None
    assert fetch_model(pinned.location) == directory
    assert pin_model(f"registry:kk@production?in={tmp_path / 'registry'}").version == "2"
    with pytest.raises(ModelNotFoundError, match=r"no alias 'best' of kk"):
        pin_model(f"registry:kk@best?in={tmp_path / 'registry'}")


def test_a_registry_on_an_object_store_is_copied_to_the_node_once(model: Path, tmp_path: Path, s3_uri: str) -> None:
    registry = registered(s3_uri, model)
    directory = fetch_model(pin_model(f"registry:kk?in={s3_uri.replace('&', '%26')}").location)
    assert directory.is_relative_to(tmp_path / "cache")
    assert names(directory) == sorted(set(FILES) - {"optimizer.pt"})
    registry.store.delete_directory("kk/models")
    assert fetch_model(pin_model(f"registry:kk@1?in={s3_uri.replace('&', '%26')}").location) == directory


def test_a_folder_of_an_object_store_is_copied_without_other_files(tmp_path: Path, s3_uri: str) -> None:
    write_folder(s3_uri, FILES)
    pinned = pin_model(s3_uri)
    assert pinned.location == f"{s3_uri}#{pinned.version}"
    assert names(fetch_model(pinned.location, weights=False)) == CONFIGURATION
    progress: list[tuple[int, int | None]] = []
    directory = fetch_model(pinned.location, on_bytes=lambda *seen: progress.append(seen))
    assert {name: (directory / name).read_bytes() for name in names(directory)} == {
        name: content for name, content in FILES.items() if name != "optimizer.pt"
    }
    total = sum(map(len, FILES.values())) - len(FILES["optimizer.pt"])
    assert progress[-1] == (total, total)
    write_folder(s3_uri, {"model-00001-of-00002.safetensors": b"another"})
    assert fetch_model(pinned.location) == directory  # this node has the files of the digest
    assert pin_model(s3_uri).version != pinned.version


def test_a_folder_that_has_changed_is_not_copied_under_its_former_digest(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(s3_uri, FILES)
    pinned = pin_model(s3_uri)
    write_folder(s3_uri, {"config.json": b'{"changed": true}'})
    with pytest.raises(PlanError, match=f"have changed: expected digest {pinned.version}; got"):
        fetch_model(pinned.location)


def test_folders_without_a_model_and_stores_that_do_not_answer_are_named(s3_uri: str) -> None:
    with pytest.raises(PlanError, match="expected a folder with config.json and safetensors files"):
        pin_model(s3_uri)
    with pytest.raises(PlanError, match="unknown option 'zone'"):
        pin_model("s3://bucket/model?zone=1")
    with pytest.raises(ModelUnreachableError, match="cannot read s3://bucket/model.*Credentials and region come from"):
        pin_model("s3://bucket/model?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
