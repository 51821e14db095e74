"""Actions of the console: what they call, and what the audit log records."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipelines.console.settings import ConsoleSettings
from pipelines.run.directory import RunDirectory
from rlad.errors import RunDirectoryError
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.webhooks import Webhooks
from tests.console_stand_in import MODEL, RecordedRequests

from .conftest import csrf_of

Visit = Callable[..., TestClient]


def act(client: TestClient, path: str, **fields: str) -> str:
    """Send a form and return the page that it leads to."""
    answer = client.post(path, data={**fields, "csrf": csrf_of(client.get("/").text)})
    assert answer.status_code == 303, answer.text
    return client.get(answer.headers["location"]).text


def entries(settings: ConsoleSettings) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in settings.audit.read_text().splitlines()]
    return [entry for entry in found if not entry["action"].startswith("sign")]


def test_stop_and_scale_reach_the_run_and_are_recorded(visit: Visit, settings: ConsoleSettings) -> None:
    client = visit("otto")
    assert "ends after its current step" in act(client, "/runs/kk-distill/stop")
    assert "scaled to 3 workers" in act(client, "/runs/kk-distill/scale", pool="rollout", workers="3")
    assert isinstance(settings.live, RecordedRequests)
    assert settings.live.requests == [("stop", "kk-distill", {}), ("scale", "kk-distill", {"rollout": 3})]
    assert [(each["user"], each["action"], each["outcome"]) for each in entries(settings)] == [
        ("otto", "stop run", "requested"),
        ("otto", "stop run", "done"),
        ("otto", "scale pool", "requested"),
        ("otto", "scale pool", "done"),
    ]
    assert stat.S_IMODE(settings.audit.stat().st_mode) == 0o600
    assert "scale pool" in client.get("/audit").text


@pytest.mark.parametrize("workers", ["0", "-1", "1e3", "٣", "9999999", ""])
def test_invalid_size_is_refused_before_the_run_is_asked(visit: Visit, settings: ConsoleSettings, workers: str) -> None:
    page = act(visit("otto"), "/runs/kk-distill/scale", pool="rollout", workers=workers)
    assert "ConfigError: expected a number of workers" in page
    assert isinstance(settings.live, RecordedRequests)
    assert settings.live.requests == []
    assert [each["outcome"] for each in entries(settings)] == ["requested", "refused"]


class Unreachable(RecordedRequests):
    """Live runs whose cluster is gone."""

    def scale(self, run: RunDirectory, sizes: Mapping[str, int]) -> None:
        raise RunDirectoryError("the cluster does not answer, password=hunter2hunter2")


def test_refusal_is_shown_and_recorded_without_secrets(visit: Visit, settings: ConsoleSettings) -> None:
    object.__setattr__(settings, "live", Unreachable())
    page = act(visit("otto"), "/runs/kk-distill/scale", pool="rollout", workers="3")
    assert "RunDirectoryError: the cluster does not answer" in page
    assert entries(settings)[-1]["error"] == "RunDirectoryError"
    assert "hunter2" not in page + settings.audit.read_text()


def test_version_is_approved_then_promoted_then_rolled_back(visit: Visit, settings: ConsoleSettings) -> None:
    operator, registry = visit("otto"), ModelRegistry.open(settings.registry)
    too_early = act(operator, f"/registry/{MODEL}/2/promote", reason="better", expected="1")
    assert "is not approved" in too_early
    assert registry.aliases(MODEL) == {"production": 1}
    assert f"{MODEL}@2 is approved" in act(
        visit("anna"), f"/registry/{MODEL}/2/approve", reason="reviewed", expected=""
    )
    assert "is in production" in act(operator, f"/registry/{MODEL}/2/promote", reason="better", expected="1")
    assert registry.aliases(MODEL) == {"production": 2, "approved": 2}
    assert registry.history(MODEL)[-1].reason == "better (otto, console)"
    assert "is in production again" in act(operator, f"/registry/{MODEL}/2/roll-back", reason="slow")
    assert registry.aliases(MODEL)["production"] == 1
    assert [each["outcome"] for each in entries(settings)] == ["requested", "refused", *["requested", "done"] * 3]


def test_promotion_of_a_guarded_model_is_requested_and_approved_by_another_user(
    visit: Visit, settings: ConsoleSettings
) -> None:
    registry = ModelRegistry.open(settings.registry)
    governed = ModelGovernance(registry=registry, name=MODEL)
    governed.require_approval(True, reason="serves users")
    governed.annotate(2, tags={"quality": "gold"}, description="no long answers")
    approver, operator = visit("anna"), visit("otto")
    assert "no open request" in act(approver, f"/registry/{MODEL}/2/approve", reason="reviewed", expected="")
    page = act(operator, f"/registry/{MODEL}/2/promote", reason="better", expected="1")
    assert "waits for the approval of another person" in page
    assert "Promotion requested by otto" in page
    assert "quality=gold" in page
    assert "no long answers" in operator.get(f"/registry/{MODEL}/2").text
    assert registry.aliases(MODEL) == {"production": 1}
    assert "is not promoted" in act(approver, f"/registry/{MODEL}/2/refuse", reason="unsafe")
    act(approver, f"/registry/{MODEL}/3/promote", reason="better", expected="1")
    assert "SelfApprovalError" in act(approver, f"/registry/{MODEL}/3/approve", reason="mine")
    assert registry.aliases(MODEL) == {"production": 1}
    act(operator, f"/registry/{MODEL}/2/promote", reason="better, too", expected="1")
    page = act(approver, f"/registry/{MODEL}/2/approve", reason="reviewed")
    assert "and in production" in page
    assert "requested by otto, approved by anna" in page
    assert registry.aliases(MODEL) == {"production": 2}
    assert visit("otto").post(f"/registry/{MODEL}/2/refuse", data={"reason": "x"}).status_code == 403


def test_promotion_in_the_console_is_sent_to_webhooks(
    visit: Visit, settings: ConsoleSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = Webhooks(registry=ModelRegistry.open(settings.registry))
    webhooks.add("ops", url_env="HOOK_URL", secret_env="HOOK_SECRET")
    monkeypatch.setenv("HOOK_URL", "ftp://127.0.0.1/hook")  # fails at once
    monkeypatch.setenv("HOOK_SECRET", "0123456789abcdef")
    act(visit("anna"), f"/registry/{MODEL}/2/approve", reason="reviewed", expected="")
    assert "is in production" in act(visit("otto"), f"/registry/{MODEL}/2/promote", reason="better", expected="1")
    (hook,) = webhooks.hooks()
    assert [event.kind for event, _ in webhooks.undelivered(hook)[1]] == ["promoted"]


def test_stale_page_does_not_promote_or_roll_back(visit: Visit, settings: ConsoleSettings) -> None:
    act(visit("anna"), f"/registry/{MODEL}/3/approve", reason="reviewed", expected="")
    registry = ModelRegistry.open(settings.registry)
    registry.promote(MODEL, 2, expected=1, reason="elsewhere")
    client = visit("otto")
    assert "AliasConflictError" in act(client, f"/registry/{MODEL}/3/promote", reason="better", expected="1")
    assert "AliasConflictError" in act(client, f"/registry/{MODEL}/1/roll-back", reason="slow")
    assert registry.aliases(MODEL)["production"] == 2


def test_change_without_a_reason_and_oversized_form_are_refused(visit: Visit) -> None:
    client = visit("anna")
    csrf = csrf_of(client.get("/").text)
    path = f"/registry/{MODEL}/2/approve"
    assert client.post(path, data={"csrf": csrf, "reason": " "}).status_code == 400
    assert client.post(path, data={"csrf": csrf, "reason": "x" * 20_000}).status_code == 413
    assert client.post(f"/registry/{MODEL}/9/approve", data={"csrf": csrf, "reason": "x"}).status_code == 303
    assert "does not exist" in client.get(f"/registry/{MODEL}").text


def test_audit_log_is_for_operators(visit: Visit) -> None:
    assert visit("vera").get("/audit").status_code == 403
    assert visit("otto").get("/audit").status_code == 200


def test_pools_are_asked_for_live_runs_only(visit: Visit) -> None:
    client = visit("vera")
    assert client.get("/api/runs/kk-distill/pools").json()["pools"]["rollout"]["target"] == 2
    assert client.get("/api/runs/smoke/pools").json() == {"pools": None}
