"""`rlad doctor sandbox`, and what refuses to judge programs where the sandbox does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from rlad.sandbox.probe import probe_sandbox, require_isolation
from tests.unit.rlad.sandbox.test_restrictions import in_a_pod

SOLVE = (
    "from rlad.verifiers import build_verifier\nfrom rlad.errors import ConfigError\n"
    "try: build_verifier({'name': 'code_tests'})\nexcept ConfigError as error: print(error)\n"
    "verifier = build_verifier({'name': 'code_tests', 'isolation': 'filtered'})\n"
    "response = '```python\\ndef f(x): return x + 1\\n```'\n"
    'print(verifier.verify(response, \'{"asserts": "assert f(1) == 2"}\').outcome.name)\n'
)


def test_doctor_reports_what_holds_here() -> None:
    result = CliRunner().invoke(app, ["doctor", "sandbox", "--json"])
    found = json.loads(result.stdout)
    assert {check["name"] for check in found["checks"]} >= {"namespaces", "landlock", "seccomp", "processes"}
    assert all((check["status"] == "ok") == (check["remedy"] == "") for check in found["checks"])
    assert result.exit_code == (1 if found["status"] == "error" else 0)
    assert f"isolation: {found['isolation']}" in CliRunner().invoke(app, ["doctor", "sandbox"]).stdout


def test_pod_is_refused_until_the_configuration_accepts_it() -> None:
    if probe_sandbox().level == "any":
        pytest.skip("this machine has no Landlock or no seccomp")
    output = in_a_pod("-c", SOLVE)
    assert "requires isolation 'full', but this machine gives 'filtered' (namespaces: " in output
    assert "isolation: filtered" in output
    assert output.splitlines()[-1] == "CORRECT"
    found = json.loads(in_a_pod("-m", "pipelines", "doctor", "sandbox", "--json"))
    assert (found["status"], found["isolation"]) == ("warning", "filtered")


def test_isolation_that_is_not_required_is_not_probed() -> None:
    require_isolation("any", "nobody")


def test_render_refuses_programs_in_pods_unless_that_is_accepted(tmp_path: Path) -> None:
    given = ["deploy", "render", "configs/qwen3_8b_math_30k.yaml", "verifiers.code.name=code_tests", "--kind", "rayjob"]
    runner = CliRunner()
    refused = runner.invoke(app, [*given, "--out", str(tmp_path / "a")])
    assert refused.exit_code == 1
    assert "requires isolation 'full', but pods" in str(refused.exception)
    accepted = runner.invoke(app, [*given, "verifiers.code.isolation=filtered", "--out", str(tmp_path / "b")])
    assert accepted.exit_code == 0, accepted.output
