"""`rlad registry webhook`, and the commands whose changes are sent."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from rlad.errors import RladError
from rlad.registry.registry import ModelRegistry

from .conftest import MODEL, SECRET, Receiver


def rlad(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["registry", *arguments])
    if isinstance(result.exception, RladError):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(autouse=True)
def environment(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_REGISTRY", registry.uri)


def test_changes_on_the_command_line_are_sent_after_they_are_made(receiver: Receiver) -> None:
    assert "no webhooks" in rlad("webhook", "list")
    added = rlad("webhook", "add", "ops", "--url-env", "HOOK_URL", "--secret-env", "HOOK_SECRET")
    assert "registered, requested, approved, refused, promoted, rolled_back" in added
    assert "version 1 -> version 2" in rlad("promote", f"{MODEL}@2")
    rlad("rollback", MODEL)
    for decision in ("refuse", "approve"):
        rlad("request", f"{MODEL}@2", "--by", "Otto", "--reason", "better")
        rlad(decision, f"{MODEL}@2", "--by", "Anna", "--reason", "read it")
    kinds = [event for event, _ in receiver.events]
    assert kinds == ["promoted", "rolled_back", "requested", "refused", "requested", "approved"]


def test_failed_events_are_listed_and_sent_again(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    rlad("webhook", "add", "ops", "--url-env", "HOOK_URL", "--secret-env", "HOOK_SECRET", "--on", "promoted")
    assert "no delivery has failed" in rlad("webhook", "failed")
    with monkeypatch.context() as wrong:
        wrong.setenv("HOOK_URL", "ftp://127.0.0.1/s3cret")
        rlad("promote", f"{MODEL}@2")
    shown = rlad("webhook", "failed")
    assert f"{MODEL}-change-000002" in shown
    assert "UnsupportedProtocol" in shown
    (facts,) = json.loads(rlad("webhook", "failed", "--json"))
    assert (facts["webhook"], facts["kind"], facts["attempts"]) == ("ops", "promoted", 1)
    (listed,) = json.loads(rlad("webhook", "list", "--json"))
    assert (listed["url_env"], listed["waiting"], listed["failed"]) == ("HOOK_URL", 0, 1)
    assert SECRET not in shown + json.dumps([facts, listed])
    assert "ops: 0 delivered, 0 waiting" in rlad("webhook", "send")
    assert receiver.requests == []
    assert "ops: 1 delivered" in rlad("webhook", "send", "--again")
    assert receiver.events == [("promoted", 2)]
    assert "ops" in rlad("webhook", "list")
    assert "is removed" in rlad("webhook", "remove", "ops")


def test_command_without_the_secret_leaves_the_event_to_another(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    rlad("webhook", "add", "ops", "--url-env", "HOOK_URL", "--secret-env", "HOOK_SECRET")
    with monkeypatch.context() as elsewhere:
        elsewhere.delenv("HOOK_SECRET")
        rlad("promote", f"{MODEL}@2")
        assert "0 delivered, 1 waiting; environment variable HOOK_SECRET" in rlad("webhook", "send", status=1)
    assert json.loads(rlad("webhook", "send", "--json"))[0]["delivered"] == 1
    assert receiver.events == [("promoted", 2)]
