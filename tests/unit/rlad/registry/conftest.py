"""Registries on a local disk and on S3, and models to add to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage, ModelVersion

NAME = "kk-student"
ROOT = Path(__file__).parents[4]


@pytest.fixture
def lineage_record() -> Lineage:
    return Lineage(
        run_id="nightly-1a2b3c4d",
        run_dir="/runs/nightly",
        config_sha256="c0ffee",
        parent=None,
        base_model="Qwen/Qwen3-0.6B",
        teachers={"teacher": "Qwen/Qwen3-8B"},
        prompts_fingerprint="0123456789abcdef",
        num_prompts=800,
        steps=20,
        rlad_version="0.1.0",
        git_commit=None,
        created_at="2026-01-31T02:00:00+00:00",
    )


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "registry") if request.param == "local" else request.getfixturevalue("s3_uri")


@pytest.fixture
def registry(uri: str) -> ModelRegistry:
    return ModelRegistry.open(uri)


@pytest.fixture
def local(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry.open(str(tmp_path / "registry"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _export(tmp_path / "export")


def _evaluation(solved: int = 5) -> EvaluationSummary:
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{index}",
                groups=("2",),
                rewards=(float(index < solved),),
                response_tokens=(3,),
                num_truncated=0,
            )
            for index in range(10)
        ]
    )


@pytest.fixture
def evaluation() -> Callable[..., EvaluationSummary]:
    return _evaluation


def _export(directory: Path, weights: bytes = b"weights") -> Path:
    (directory / "adapters").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "adapters" / "notes.txt").write_text("a file in a directory")
    return directory


@pytest.fixture
def export() -> Callable[..., Path]:
    return _export


def _write(registry: ModelRegistry, path: str, content: bytes) -> None:
    """Overwrite a file, which the registry itself never does."""
    with registry.store.filesystem.open_output_stream(f"{registry.store.root}/{path}") as file:
        file.write(content)


@pytest.fixture
def write() -> Callable[[ModelRegistry, str, bytes], None]:
    return _write


def _run_program(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.fixture
def run_program() -> Callable[[str], subprocess.CompletedProcess[str]]:
    return _run_program


@pytest.fixture
def add(lineage_record: Lineage) -> Callable[..., ModelVersion]:
    """Add a model directory to a registry as a version with the given key."""

    def add(registry: ModelRegistry, key: str, model_dir: Path, *, solved: int = 5) -> ModelVersion:
        return registry.add(
            NAME, model_dir, lineage=lineage_record, evaluation=_evaluation(solved), idempotency_key=key
        )

    return add
