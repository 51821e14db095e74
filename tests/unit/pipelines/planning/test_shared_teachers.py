"""Teacher services in `rlad plan`."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.plan import Plan, make_plan
from rlad.config import load_run_config
from rlad.data.chat import tokenizer_fingerprint

from .plan_inputs import BYTES, CONFIGS, errors


class Service(ThreadingHTTPServer):
    """Teacher service that returns its identity to requests with the right token."""

    def __init__(self, identity: dict[str, Any]) -> None:
        body = json.dumps(identity).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = (
                    self.path == "/kk/v1/teacher" and self.headers["Authorization"] == "Bearer a-token-of-this-test"
                )
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def shared(qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plan]]:
    """Return a function that plans a run with a teacher service of the given identity."""
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", "a-token-of-this-test")
    with contextlib.ExitStack() as closing:

        def plan(*overrides: str, **identity: Any) -> Plan:
            fingerprint = tokenizer_fingerprint(qwen["0.6B"])
            answer = {
                "teacher": "ab" * 16,
                "tokenizer": fingerprint,
                "engine": "vllm",
                "vocabulary": 151_936,
                "max_groups_per_client": 32,
                **identity,
            }
            service = closing.enter_context(Service(answer))
            threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
            closing.callback(service.shutdown)
            url = f"teacher.url=http://127.0.0.1:{service.server_port}/kk"
            config = load_run_config(
                CONFIGS / "qwen3_0.6b_kk_2k.yaml",
                [f"student.path={qwen['0.6B']}", "prompts.count=64", BYTES, url, *overrides],
            )
            return make_plan(config, Resources(cpus=256, gpus=6), gpu_memory_gib=80)

        yield plan


def test_shared_teacher_is_queried_and_takes_no_gpus(shared: Callable[..., Plan]) -> None:
    plan = shared()
    assert errors(plan) == [], "6 GPUs hold the run without its teacher's 2"
    assert "teacher" not in [pool.pool for pool in plan.pools]
    assert any("model abababababab" in finding.text and finding.level == "ok" for finding in plan.findings)


def test_mismatch_with_shared_teacher_is_an_error(shared: Callable[..., Plan]) -> None:
    (problem,) = errors(shared(tokenizer="another"))
    assert "use a teacher and a student with one vocabulary" in problem
    (problem,) = errors(shared("teacher.fingerprint=cdcd"))
    assert "the configuration expects cdcd" in problem
    (problem,) = errors(shared("rollout.temperature=0.5"))
    assert "vllm engine scores at temperature 1 only" in problem


def test_unreachable_shared_teacher_is_a_warning(qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = [f"student.path={qwen['0.6B']}", "prompts.count=64", BYTES, "objective.teacher_log_ratio_clamp=auto"]

    def warnings(*overrides: str) -> list[str]:
        plan = make_plan(
            load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*base, *overrides]),
            Resources(cpus=256, gpus=6),
            gpu_memory_gib=80,
        )
        assert errors(plan) == []
        return [finding.text for finding in plan.findings if finding.level == "warning"]

    monkeypatch.delenv("RLAD_TEACHER_TOKEN", raising=False)
    assert warnings("teacher.service=kk") == ["teacher service kk is not checked: --address is not set"]
    (no_token,) = warnings("teacher.url=http://127.0.0.1:9/kk")
    assert "set RLAD_TEACHER_TOKEN" in no_token
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", "a-token-of-this-test")
    (unreachable,) = warnings("teacher.url=https://127.0.0.1:9/kk")
    assert "cannot be reached from this machine: the teacher at https://127.0.0.1:9/kk is not reachable" in unreachable
