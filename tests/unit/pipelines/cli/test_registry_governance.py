"""`rlad registry tag`, `describe`, `require-approval`, `request`, `approve` and `refuse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from rlad.errors import ApprovalRequiredError, RegistryError, RladError, SelfApprovalError
from rlad.registry.registry import ModelRegistry
from tests.registry_records import EVALUATION, LINEAGE

MODEL = "kk-student"


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """A registry with versions 1 and 2, set as the default in the environment."""
    monkeypatch.setenv("RLAD_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("COLUMNS", "200")
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    for key in ("a", "b"):
        opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key=key)
    opened.promote(MODEL, 1, expected=None, reason="the first")
    return opened


def rlad(*arguments: str) -> str:
    """Run `rlad registry ...` and return its output, or raise its error."""
    result = CliRunner().invoke(app, ["registry", *arguments])
    if isinstance(result.exception, RladError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rlad_json(*arguments: str) -> Any:
    return json.loads(rlad(*arguments, "--json"))


def test_versions_are_tagged_described_and_listed_by_tag() -> None:
    assert "quality=gold, team=math" in rlad("tag", f"{MODEL}@2", "quality=gold", "team=math")
    rlad("tag", f"{MODEL}@1", "quality=silver")
    assert "no long answers" in rlad("describe", f"{MODEL}@2", "no long answers")
    assert rlad_json("tag", f"{MODEL}@2", "--remove", "team")["tags"] == {"quality": "gold"}
    listed = {row["reference"]: row["tags"] for row in rlad_json("list", MODEL, "--tag", "quality")}
    assert listed == {f"{MODEL}@1": {"quality": "silver"}, f"{MODEL}@2": {"quality": "gold"}}
    assert [row["reference"] for row in rlad_json("list", "--tag", "quality=gold")] == [f"{MODEL}@2"]
    assert rlad_json("list", "--tag", "quality=gold", "--tag", "team") == []
    assert "quality=gold" in rlad("list")
    assert "no version" in rlad("list", "--tag", "unknown")
    shown = rlad("show", f"{MODEL}@2")
    assert "quality=gold" in shown
    assert "no long answers" in shown
    assert "quality=silver" in shown  # in the history of the model
    facts = rlad_json("show", f"{MODEL}@2")
    assert (facts["tags"], facts["description"]) == ({"quality": "gold"}, "no long answers")
    assert len(facts["history"]) == 1
    assert [change["kind"] for change in facts["changes"]] == ["set", *["notes"] * 4]


@pytest.mark.parametrize("arguments", [[], ["gold"], ["=gold"]])
def test_tag_needs_a_key_and_a_value(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["registry", "tag", f"{MODEL}@1", *arguments])
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.output


def test_promotion_is_requested_and_approved_by_another_person(registry: ModelRegistry) -> None:
    assert "only if another person approves" in rlad("require-approval", MODEL, "--reason", "serves users")
    with pytest.raises(ApprovalRequiredError):
        rlad("promote", f"{MODEL}@2")
    assert "no promotion waits" in rlad("requests")
    rlad("request", f"{MODEL}@2", "--by", "Otto", "--reason", "better on long prompts")
    assert "Otto" in rlad("requests")
    assert [(row["name"], row["version"], row["expected"]) for row in rlad_json("requests")] == [(MODEL, 2, 1)]
    assert "requested by Otto: better on long prompts" in rlad("show", f"{MODEL}@2")
    with pytest.raises(SelfApprovalError):
        rlad("approve", f"{MODEL}@2", "--by", "otto", "--reason", "mine")
    assert "version 1 -> version 2" in rlad("approve", f"{MODEL}@2", "--by", "Anna", "--reason", "read 50 answers")
    assert registry.aliases(MODEL) == {"production": 2}
    shown = rlad("show", MODEL)
    assert "read 50 answers; requested by Otto" in shown
    assert "by Anna (" in shown
    rlad("require-approval", MODEL, "--off", "--reason", "internal use only")
    assert "version 2 -> version 1" in rlad("promote", f"{MODEL}@1")


def test_request_is_refused_and_needs_a_person(registry: ModelRegistry) -> None:
    with pytest.raises(RegistryError, match="a schedule cannot"):
        rlad("request", f"{MODEL}@2", "--by", "schedule nightly", "--reason", "x")
    rlad("request", f"{MODEL}@2", "--by", "Otto", "--reason", "better")
    assert rlad_json("refuse", f"{MODEL}@2", "--by", "Anna", "--reason", "unsafe")["refused_by"] == "Anna"
    assert registry.aliases(MODEL) == {"production": 1}
    assert "unsafe" in rlad("show", MODEL)
    assert rlad_json("requests") == []
