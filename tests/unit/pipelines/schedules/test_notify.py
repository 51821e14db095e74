"""Notifications to a real HTTP server on loopback and to commands. Error messages contain no secrets."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipelines.schedules.notify import message_of, notify
from pipelines.schedules.records import RunOutcome, Tick
from rlad.config.schedule import NotifyConfig
from rlad.monitoring.cost import RunCost

TICK = Tick(
    schedule="nightly",
    kind="cron",
    status="finished",
    scheduled_at=1778464800.0,
    run_id="nightly-20260511T020000Z",
    coalesced=0,
    started_at=0.0,
    ended_at=1.0,
    attempts=1,
    outcome=RunOutcome(
        before=0.5,
        after=0.75,
        version=4,
        incumbent=3,
        incumbent_source="the run's start",
        is_promoted=True,
        reason="better (75.0% against 50.0%)",
        difference=0.25,
        interval=(0.1, 0.4),
    ),
)


@dataclass(slots=True)
class Receiver:
    """Requests that a server received, and the statuses of its next answers."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.requests.append((self.headers["Authorization"], body))
            self.send_response(received.statuses.pop(0) if received.statuses else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        received.url = f"http://127.0.0.1:{server.server_address[1]}/hooks/s3cret-path"
        yield received
        server.shutdown()


@pytest.fixture
def settings(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> NotifyConfig:
    monkeypatch.setenv("HOOK_URL", receiver.url)
    monkeypatch.setenv("HOOK_TOKEN", "s3cret-token")
    return NotifyConfig(webhook_env="HOOK_URL", token_env="HOOK_TOKEN", timeout_s=5)


def test_webhook_receives_the_message_and_the_token(settings: NotifyConfig, receiver: Receiver) -> None:
    assert notify(settings, TICK, model="kk") is None
    ((authorization, body),) = receiver.requests
    assert authorization == "Bearer s3cret-token"
    assert body["text"] == "nightly: kk@4 is in production now: better (75.0% against 50.0%)"
    assert (body["event"], body["run_id"], body["scheduled_at"]) == (
        "promoted",
        TICK.run_id,
        "2026-05-11T02:00:00+00:00",
    )
    assert (body["outcome"]["version"], body["outcome"]["interval"]) == (4, [0.1, 0.4])


def test_message_has_the_cost_of_the_run() -> None:
    cost = RunCost(gpu_hours=12.5, cpu_hours=20, amount=31.25, currency="EUR")
    message = message_of(replace(TICK, cost=cost), model="kk")
    assert message["text"].endswith("(cost: 12.50 GPU-hours, 20.00 CPU-hours, 31.25 EUR)")
    assert message["cost"] == {"gpu_hours": 12.5, "cpu_hours": 20, "amount": 31.25, "currency": "EUR"}
    assert message_of(TICK, model="kk")["cost"] is None


def test_only_configured_events_are_sent(settings: NotifyConfig, receiver: Receiver) -> None:
    assert notify(settings.model_copy(update={"events": ["failed"]}), TICK, model="kk") is None
    assert receiver.requests == []


def test_server_error_is_retried(settings: NotifyConfig, receiver: Receiver) -> None:
    receiver.statuses = [503]
    assert notify(settings, TICK, model="kk") is None
    assert len(receiver.requests) == 2


def test_error_messages_contain_neither_url_nor_token(
    settings: NotifyConfig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.statuses = [500, 500, 403]
    assert notify(settings, TICK, model="kk") == "webhook HOOK_URL answered with status 403"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HOOK_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/s3cret-path")
        assert notify(settings, TICK, model="kk") == "webhook HOOK_URL does not answer: ConnectError"
    monkeypatch.setenv("HOOK_URL", receiver.url)
    monkeypatch.setenv("HOOK_TOKEN", "s3cret\nbroken")
    assert notify(settings, TICK, model="kk") == "webhook HOOK_URL does not answer: LocalProtocolError"
    monkeypatch.delenv("HOOK_URL")
    assert notify(settings, TICK, model="kk") == "environment variable HOOK_URL is not set"


def test_webhook_url_is_not_logged(settings: NotifyConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert notify(settings, TICK, model="kk") is None
    assert "s3cret" not in caplog.text


def test_missing_command_does_not_prevent_the_webhook(settings: NotifyConfig, receiver: Receiver) -> None:
    failure = notify(settings.model_copy(update={"command": ["/nowhere/notify"]}), TICK, model="kk")
    assert failure is not None
    assert "/nowhere/notify" in failure
    assert len(receiver.requests) == 1


def test_command_past_its_deadline_is_killed() -> None:
    failure = notify(NotifyConfig(command=["sleep", "600"], timeout_s=0.2), TICK, model="kk")
    assert failure is not None
    assert "timed out" in failure


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        ("failed", "out of memory", "nightly: failed: out of memory"),
        ("refused", "another tick is active", "nightly: refused: another tick is active"),
        ("missed", None, "nightly: missed"),
    ],
)
def test_event_without_a_student_is_summarised_in_one_line(status: Any, reason: str | None, text: str) -> None:
    assert message_of(replace(TICK, status=status, reason=reason, outcome=None), model="kk")["text"] == text
