"""`rlad doctor sandbox`, and what refuses to judge programs where the sandbox does not hold."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from pipelines.cli.main import app


def test_doctor_reports_what_holds_here() -> None:
    result = CliRunner().invoke(app, ["doctor", "sandbox", "--json"])
    found = json.loads(result.stdout)
    assert {check["name"] for check in found["checks"]} >= {"namespaces", "landlock", "seccomp", "processes"}
    assert all((check["status"] == "ok") == (check["remedy"] == "") for check in found["checks"])
    assert result.exit_code == (1 if found["status"] == "error" else 0)
    assert f"isolation: {found['isolation']}" in CliRunner().invoke(app, ["doctor", "sandbox"]).stdout


def test_render_refuses_programs_in_pods_unless_that_is_accepted(tmp_path: Path) -> None:
    given = ["deploy", "render", "configs/qwen3_8b_math_30k.yaml", "verifiers.code.name=code_tests", "--kind", "rayjob"]
    runner = CliRunner()
    refused = runner.invoke(app, [*given, "--out", str(tmp_path / "a")])
    assert refused.exit_code == 1
    assert "requires isolation 'full', but pods" in str(refused.exception)
    accepted = runner.invoke(app, [*given, "verifiers.code.isolation=filtered", "--out", str(tmp_path / "b")])
    assert accepted.exit_code == 0, accepted.output
