"""Versions: adding, lookup, names, manifests and differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlad.errors import ContractError, ModelNotFoundError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage, ModelFile, ModelVersion, from_json, to_json

NAME = "kk-student"
SETTINGS = {"seed": 1, "objective": {"name": "trrd", "alpha": 0.5}}


def test_added_version_is_read_back_by_a_new_process(
    evaluation: Callable[..., EvaluationSummary],
    lineage_record: Lineage,
    registry: ModelRegistry,
    uri: str,
    model: Path,
) -> None:
    added = registry.add(
        NAME,
        model,
        lineage=lineage_record,
        evaluation=evaluation(7),
        metrics={"reward/mean": 0.7},
        config=SETTINGS,
        idempotency_key="nightly-1",
    )
    assert added.reference == "kk-student@1"
    reopened = ModelRegistry.open(uri)
    assert reopened.get(NAME, 1) == added
    assert reopened.versions(NAME) == [added]
    assert reopened.names() == [NAME]
    assert added.evaluation == evaluation(7)
    assert [(file.path, file.bytes) for file in added.files] == [
        ("adapters/notes.txt", 21),
        ("config.json", 2),
        ("model.safetensors", 7),
    ]
    assert added.files[1].sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert added.num_bytes == 30


def test_numbers_increase_and_each_key_is_added_once(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    assert [add(registry, key, model).version for key in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]
    assert [version.idempotency_key for version in registry.versions(NAME)] == ["a", "b", "c"]


def test_version_is_found_by_number_alias_and_latest(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    versions = [add(registry, key, model) for key in "abc"]
    registry.promote(NAME, 2, expected=None, reason="first")
    assert [registry.get(NAME, ref).version for ref in (3, "1", "production", "latest")] == [
        3,
        1,
        2,
        versions[-1].version,
    ]
    with pytest.raises(ModelNotFoundError, match=r"no alias 'best' of kk-student .* aliases: production \(2\)"):
        registry.get(NAME, "best")
    with pytest.raises(ModelNotFoundError, match="kk-student@4 does not exist .* versions: 1, 2, 3"):
        registry.get(NAME, 4)
    with pytest.raises(ModelNotFoundError, match="no model 'math' .* models: kk-student"):
        registry.get("math", 1)


def test_empty_registry_has_no_models(registry: ModelRegistry) -> None:
    assert registry.names() == []
    assert registry.versions(NAME) == []
    assert registry.aliases(NAME) == {}
    assert registry.history(NAME) == []


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden", "UPPER", "x" * 64, "latest", "kk@1"])
def test_invalid_model_name_is_rejected(
    evaluation: Callable[..., EvaluationSummary], lineage_record: Lineage, local: ModelRegistry, model: Path, name: str
) -> None:
    with pytest.raises(RegistryError, match="invalid name for a model"):
        local.add(name, model, lineage=lineage_record, evaluation=evaluation(), idempotency_key="a")
    assert local.store.entries("") == []


def test_only_safetensors_models_are_accepted(
    add: Callable[..., ModelVersion], local: ModelRegistry, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(RegistryError, match="does not exist"):
        add(local, "a", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="is not a model directory"):
        add(local, "a", tmp_path / "empty")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(RegistryError, match=r"contains pickle files, .*: pytorch_model\.bin"):
        add(local, "a", model)
    assert local.names() == []


def test_registered_model_loads_with_transformers(
    add: Callable[..., ModelVersion], local: ModelRegistry, make_model: Any, tmp_path: Path
) -> None:
    source = make_model()
    version = add(local, "a", source)
    path = local.local_path(version)
    assert path is not None
    original = AutoModelForCausalLM.from_pretrained(source).state_dict()
    for directory in (path, local.fetch(NAME, 1, tmp_path / "cache")):
        loaded = AutoModelForCausalLM.from_pretrained(directory).state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in original.items())
        assert AutoTokenizer.from_pretrained(directory).get_vocab() == AutoTokenizer.from_pretrained(source).get_vocab()


def test_manifest_with_path_outside_its_directory_is_rejected(
    add: Callable[..., ModelVersion], local: ModelRegistry, model: Path, tmp_path: Path
) -> None:
    for path in ("../../secret", "/etc/passwd", ""):
        with pytest.raises(ContractError, match="inside the model's directory"):
            ModelFile(path=path, bytes=1, sha256="")
    add(local, "a", model)
    manifest = tmp_path / "registry" / NAME / "versions" / "000001.json"
    honest = manifest.read_text()
    for forged, message in (
        (
            honest.replace("adapters/notes.txt", "../../notes.txt"),
            r"files\.0: Value error, the path of a model file must be inside",
        ),
        (honest.replace('"name": "kk-student"', '"name": "../../student"'), "must be inside the registry"),
        (honest.replace('"directory": "kk-student', '"directory": "../..'), "must be inside the registry"),
        (honest.replace('"bytes": 21', '"bytes": "many"'), r"files\.0\.bytes: Input should be a valid integer"),
        (honest[:-1], "document: Invalid JSON"),
    ):
        assert forged != honest
        manifest.write_text(forged)
        with pytest.raises(RegistryError, match=rf"000001\.json in .* is not a valid ModelVersion .*{message}"):
            local.fetch(NAME, 1, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_version_of_an_earlier_version_of_rlad_has_no_cost(
    add: Callable[..., ModelVersion], local: ModelRegistry, model: Path
) -> None:
    version = add(local, "a", model)
    manifest = json.loads(to_json(version))
    del manifest["lineage"]["cost"], manifest["sha256"]
    old = json.dumps(manifest, indent=2).encode()
    assert from_json(ModelVersion, old, "an old manifest") == version
    assert version.lineage.cost is None


def test_diff_contains_only_changed_values(
    evaluation: Callable[..., EvaluationSummary], lineage_record: Lineage, registry: ModelRegistry, model: Path
) -> None:
    registry.add(NAME, model, lineage=lineage_record, evaluation=evaluation(5), config=SETTINGS, idempotency_key="a")
    (model / "model.safetensors").write_bytes(b"others")
    (model / "README.md").write_text("card")
    changed = {"seed": 1, "objective": {"name": "trrd", "alpha": 0.25}, "rollout": {"workers": 2}}
    second = replace(lineage_record, parent="kk-student@1", steps=40)
    registry.add(NAME, model, lineage=second, evaluation=evaluation(8), config=changed, idempotency_key="b")
    found = registry.diff(NAME, 1, "latest")
    assert (found.a, found.b) == ("kk-student@1", "kk-student@2")
    assert found.config == {"objective.alpha": (0.5, 0.25), "rollout.workers": (None, 2)}
    assert found.lineage == {"parent": (None, "kk-student@1"), "steps": (20, 40)}
    assert found.evaluation == {"2": (0.5, 0.8), "all": (0.5, 0.8)}
    assert found.files.keys() == {"model.safetensors", "README.md"}
    assert found.files["README.md"][0] is None
