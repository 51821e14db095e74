"""`rlad registry serve` with a real vLLM server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rlad.registry.registry import ModelRegistry
from tests.registry_records import EVALUATION, LINEAGE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
MODEL = "kk-student"
CONFIG = {
    "student": {"dtype": "bfloat16", "chat_template_kwargs": {"enable_thinking": False}},
    "rollout": {"max_prompt_tokens": 24, "max_response_tokens": 40},
    "evaluation": {"temperature": 0.0, "top_p": 1.0},
}
TEMPLATE = "{% if enable_thinking is false %}x{% else %}FF{% endif %}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def server(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server of a version in production."""
    folder = tmp_path_factory.mktemp("serve")
    export = shutil.copytree(make_model(), folder / "export")
    (export / "chat_template.jinja").write_text(TEMPLATE)
    _register(folder / "registry", export)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines", "registry", "serve", f"{MODEL}@production", "--port", str(port)]
    variables = {
        "PYTHONPATH": str(ROOT),
        "RLAD_REGISTRY": str(folder / "registry"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--", "--enforce-eager"], cwd=folder, env=os.environ | variables, stdout=output, stderr=output
        ) as process,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_version_is_served_by_its_names_and_with_the_settings_of_its_run(server: str) -> None:
    served = requests.get(f"{server}/v1/models", timeout=60).json()["data"]
    assert {each["id"] for each in served} == {MODEL, f"{MODEL}@1", f"{MODEL}@production"}
    assert {each["max_model_len"] for each in served} == {64}
    # The evaluation was greedy: so are requests without a temperature, and only those.
    assert completion(server) == completion(server)
    assert completion(server, temperature=1.0, seed=3) != completion(server)
    messages = [{"role": "user", "content": "ab"}]
    tokens = post(f"{server}/tokenize", {"model": MODEL, "messages": messages, "add_special_tokens": False})["tokens"]
    thinking = {"model": MODEL, "messages": messages, "chat_template_kwargs": {"enable_thinking": True}}
    assert len(tokens) == len("xab")
    assert len(post(f"{server}/tokenize", thinking)["tokens"]) == len("FFab")


def completion(server: str, **parameters: Any) -> list[str]:
    request = {"model": MODEL, "prompt": "abcd", "max_tokens": 24, "ignore_eos": True, "logprobs": 0, **parameters}
    tokens: list[str] = post(f"{server}/v1/completions", request)["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 24
    return tokens


def post(url: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(url, json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _register(registry: Path, export: Path) -> None:
    opened = ModelRegistry.open(str(registry))
    opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key="a", config=CONFIG)
    opened.promote(MODEL, 1, expected=None, reason="the first")


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
