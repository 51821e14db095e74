"""`rlad registry export`: versions in MLflow's registry, with its real library, and in repositories of a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from tests.hub_stand_in import HubStandIn

from ..cli.test_registry_governance import EVALUATION, LINEAGE, MODEL

ROOT = Path(__file__).parents[4]
REPOSITORY = "team/kk-student"


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A registry with versions 1, in production, and 2, whose weights have other files."""
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    for key, weights in (("a", ["model.safetensors"]), ("b", ["model-1.safetensors", "model-2.safetensors"])):
        export = tmp_path / key
        export.mkdir()
        (export / "config.json").write_text("{}")
        (export / "README.md").write_text("the card of the run")
        for name in weights:
            (export / name).write_bytes(f"{key} {name}".encode())
        opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key=key, metrics={"loss": 0.5})
    opened.promote(MODEL, 1, expected=None, reason="the first")
    return opened


def export(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Run `rlad registry export` and return its output."""
    finished = run(folder, *arguments, "--json", environment=environment)
    assert finished.returncode == 0, finished.stderr
    found: list[dict[str, Any]] = json.loads(finished.stdout)
    return found


def run(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MLFLOW_"))}
    variables |= {"PYTHONPATH": str(ROOT), "RLAD_REGISTRY": str(folder / "registry"), **(environment or {})}
    command = [sys.executable, "-m", "pipelines", "registry", "export", *arguments]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")


@needs_mlflow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_version_is_registered_in_mlflow_once(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    governance = ModelGovernance(registry=registry, name=MODEL)
    governance.annotate(1, tags={"quality": "gold"})
    registry.set_alias(MODEL, "best.of.all", 1, expected=None, reason="a name that MLflow refuses")
    (first,) = export(tmp_path, f"{MODEL}@production", "--mlflow", uri)
    assert (first["target"], first["location"], first["was_there"]) == ("mlflow", f"models:/{MODEL}/1", False)
    assert first["notes"] == ["MLflow accepts no alias 'best.of.all': left out"]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    copy = client.get_model_version_by_alias(MODEL, "production")
    assert copy.tags["rlad.reference"] == f"{MODEL}@1"
    assert copy.tags["quality"] == "gold"
    assert copy.description == f"{MODEL}@1: 100.0% on 1 prompts"
    recorded = client.get_run(copy.run_id)
    assert (recorded.info.status, recorded.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert recorded.data.metrics["evaluation/accuracy"] == 1.0
    copied = Path(client.download_artifacts(copy.run_id, "model", str(_folder(tmp_path / "copy"))))
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()
    }
    card = Path(client.download_artifacts(copy.run_id, "model_card.md", str(_folder(tmp_path / "card"))))
    assert f"# {MODEL}@1" in card.read_text()
    # An alias that moves and new notes reach MLflow; the files are not copied again.
    export(tmp_path, f"{MODEL}@2", "--mlflow", uri)
    registry.promote(MODEL, 2, expected=1, reason="better")
    governance.annotate(2, tags={"quality": "silver"}, description="short answers only")
    (again,) = export(tmp_path, f"{MODEL}@production", "--mlflow", uri)
    assert (again["location"], again["was_there"]) == (f"models:/{MODEL}/2", True)
    moved = client.get_model_version_by_alias(MODEL, "production")
    assert (str(moved.version), moved.tags["quality"], moved.description) == ("2", "silver", "short answers only")
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 2


@needs_mlflow
def test_address_of_mlflow_must_not_hold_a_password(registry: ModelRegistry, tmp_path: Path) -> None:
    finished = run(tmp_path, f"{MODEL}@1", "--mlflow", "https://anna:s3cret-word@mlflow.example")
    assert finished.returncode != 0
    assert "secrets" in finished.stderr
    assert "s3cret-word" not in finished.stderr + finished.stdout


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        yield stand_in


def client_of(hub: HubStandIn, tmp_path: Path, token: str | None = "writer") -> dict[str, str]:
    return {**hub.environment(tmp_path / "hf", token=token), "HF_HUB_DISABLE_XET": "1"}


def test_version_is_one_commit_of_a_private_repository_with_a_tag(
    registry: ModelRegistry, hub: HubStandIn, tmp_path: Path
) -> None:
    environment = client_of(hub, tmp_path)
    (first,) = export(tmp_path, f"{MODEL}@1", "--hub", REPOSITORY, environment=environment)
    assert (first["location"], first["was_there"]) == (f"{REPOSITORY}@v1", False)
    repository = hub.repositories["model", REPOSITORY]
    assert hub.visibility == {REPOSITORY: "private"}
    files = repository.commits[repository.tags["v1"]]
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == b"a model.safetensors"
    assert f"# {MODEL}@1".encode() in files["README.md"]
    # The next version replaces the weights in one commit.
    export(tmp_path, f"{MODEL}@2", "--hub", REPOSITORY, environment=environment)
    assert len(repository.commits) == 3
    newer = repository.commits[repository.tags["v2"]]
    assert newer.keys() == {*files.keys() - {"model.safetensors"}, "model-1.safetensors", "model-2.safetensors"}
    assert repository.branches["main"] == repository.tags["v2"]
    # A repeated export adds nothing.
    (again,) = export(tmp_path, f"{MODEL}@2", "--hub", REPOSITORY, environment=environment)
    assert again["was_there"]
    assert len(repository.commits) == 3


def test_public_repository_and_tag_of_another_model_are_refused(
    registry: ModelRegistry, hub: HubStandIn, tmp_path: Path
) -> None:
    other = hub.add_model(REPOSITORY, {"model.safetensors": b"another model"})
    hub.repositories["model", REPOSITORY].tags["v1"] = other
    environment = client_of(hub, tmp_path)
    # The repository is public, which has to be allowed.
    finished = run(tmp_path, f"{MODEL}@1", "--hub", REPOSITORY, environment=environment)
    assert finished.returncode != 0
    assert f"{REPOSITORY} is public" in " ".join(finished.stderr.split())
    finished = run(tmp_path, f"{MODEL}@1", "--hub", REPOSITORY, "--public", environment=environment)
    assert finished.returncode != 0
    assert "has other weights at tag v1" in " ".join(finished.stderr.split())
    assert list(hub.repositories["model", REPOSITORY].commits) == [other]


def test_hub_that_refuses_the_token_is_an_error_with_a_remedy(
    registry: ModelRegistry, hub: HubStandIn, tmp_path: Path
) -> None:
    environment = client_of(hub, tmp_path, token="reader-of-models")
    finished = run(tmp_path, f"{MODEL}@1", "--hub", REPOSITORY, environment=environment)
    assert finished.returncode != 0
    assert "Set HF_TOKEN" in " ".join(finished.stderr.split())
    assert "reader-of-models" not in finished.stderr
    assert hub.repositories == {}


def test_damaged_version_is_not_exported(registry: ModelRegistry, hub: HubStandIn, tmp_path: Path) -> None:
    path = registry.local_path(registry.get(MODEL, 1))
    assert path is not None
    (path / "model.safetensors").write_bytes(b"changed")
    finished = run(tmp_path, f"{MODEL}@1", "--hub", REPOSITORY, environment=client_of(hub, tmp_path))
    assert finished.returncode != 0
    assert "does not match its manifest" in " ".join(finished.stderr.split())
    assert hub.requests == []


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
