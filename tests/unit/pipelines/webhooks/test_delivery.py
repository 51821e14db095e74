"""Events of a registry reach its webhooks signed, once, and without ever failing a change."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.webhooks.delivery import DeliveryReport, deliver, deliver_quietly
from rlad.errors import RegistryError
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.webhooks import Webhooks

from .conftest import EVALUATION, LINEAGE, MODEL, SECRET, Receiver


@pytest.fixture
def webhooks(registry: ModelRegistry) -> Webhooks:
    found = Webhooks(registry=registry)
    found.add("ops", url_env="HOOK_URL", secret_env="HOOK_SECRET")
    return found


def send(registry: ModelRegistry, *, again: bool = False) -> DeliveryReport:
    (report,) = deliver(registry, again=again, first_wait_s=0.01)
    return report


def failures(webhooks: Webhooks) -> list[tuple[str, int, str | None]]:
    (hook,) = webhooks.hooks()
    return [(event.id, last.attempts, last.error) for event, last in webhooks.undelivered(hook)[1]]


def test_every_event_from_now_on_is_sent_once(registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver) -> None:
    governed = ModelGovernance(registry=registry, name=MODEL)
    registry.promote(MODEL, 2, expected=1, reason="better")
    registry.set_alias(MODEL, "best", 2, expected=None, reason="is no event")
    registry.rollback(MODEL, reason="slow")
    governed.annotate(2, tags={"is": "no event"})
    governed.request(2, expected=1, reason="faster now", requester="Otto")
    governed.approve(2, approver="Anna", reason="reviewed")
    export = Path(registry.uri).parent / "export"
    registry.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key="c")
    report = send(registry)
    assert (report.error, report.waiting, report.delivered) == (None, 0, 5)
    assert [event for event, _ in receiver.events[:2]] == ["promoted", "rolled_back"]
    assert receiver.events[2:] == [("requested", 2), ("approved", 2), ("registered", 3)]
    approved = receiver.requests[-2].message
    assert (approved["model"], approved["previous"], approved["requested_by"], approved["approved_by"]) == (
        MODEL,
        1,
        "Otto",
        "Anna",
    )
    assert approved["text"] == f"{MODEL}@2 is in production, approved by Anna: reviewed"
    assert receiver.requests[-1].message["accuracy"] == 1.0
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 5
    assert send(registry).delivered == 0
    assert len(receiver.requests) == 5


def test_refusal_is_an_event(registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver) -> None:
    governed = ModelGovernance(registry=registry, name=MODEL)
    governed.request(2, expected=1, reason="better", requester="schedule nightly")
    governed.refuse(2, by="Anna", reason="unsafe answers")
    send(registry)
    assert receiver.events == [("requested", 2), ("refused", 2)]
    assert receiver.requests[0].message["requested_by"] == "schedule nightly"
    assert receiver.requests[1].message["text"] == f"Anna refused the promotion of {MODEL}@2: unsafe answers"


@pytest.mark.parametrize("encoding", ["text", "whsec"])
def test_signature_is_verified_independently(
    encoding: str, registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SECRET.encode()
    if encoding == "whsec":
        key = bytes(range(24))
        monkeypatch.setenv("HOOK_SECRET", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX")
    registry.promote(MODEL, 2, expected=1, reason="better")
    send(registry)
    (request,) = receiver.requests
    head = request.headers
    signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert head["webhook-signature"] == f"v1,{expected}"
    assert abs(int(head["webhook-timestamp"]) - time.time()) < 30
    assert head["content-type"] == "application/json"
    assert request.message["id"] == head["webhook-id"] == f"{MODEL}-change-000002"


def test_failed_delivery_is_retried_then_a_dead_letter_then_sent_again(
    registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver
) -> None:
    receiver.statuses = [503, 500]
    registry.promote(MODEL, 2, expected=1, reason="better")
    assert send(registry).delivered == 1
    assert len(receiver.requests) == 3
    assert failures(webhooks) == []
    receiver.statuses = [500] * 3
    registry.rollback(MODEL, reason="slow")
    registry.promote(MODEL, 2, expected=1, reason="fast")
    report = send(registry)
    assert (report.delivered, report.waiting, report.error) == (0, 1, "webhook ops answered with status 500")
    assert failures(webhooks) == [(f"{MODEL}-change-000003", 3, "webhook ops answered with status 500")]
    assert send(registry).delivered == 1  # the event that waited; a dead letter is not sent by itself
    receiver.statuses = [404] * 3
    assert send(registry, again=True).error == "webhook ops answered with status 404"
    assert failures(webhooks) == [(f"{MODEL}-change-000003", 3, "webhook ops answered with status 404")]
    assert send(registry, again=True).delivered == 1
    assert failures(webhooks) == []
    assert receiver.events[-1] == ("rolled_back", 1)
    assert send(registry, again=True).delivered == 0


def test_redirect_is_a_failure_and_is_not_followed(
    registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver
) -> None:
    receiver.statuses = [302] * 3
    registry.promote(MODEL, 2, expected=1, reason="better")
    assert send(registry).error == "webhook ops answered with status 302"
    assert {request.path for request in receiver.requests} == {"/hooks/s3cret-path"}


def test_change_succeeds_and_secrets_stay_hidden_while_the_receiver_is_down(
    registry: ModelRegistry,
    webhooks: Webhooks,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HOOK_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/s3cret-path")
        registry.promote(MODEL, 2, expected=1, reason="better")
        with caplog.at_level(logging.INFO):
            deliver_quietly(registry.uri, first_wait_s=0.01)
    assert registry.aliases(MODEL) == {"production": 2}
    assert failures(webhooks) == [(f"{MODEL}-change-000002", 3, "webhook ops does not answer: ConnectError")]
    stored = "".join(path.read_text() for path in Path(registry.uri, "_webhooks").rglob("*.json"))
    assert "s3cret" not in stored + caplog.text
    assert SECRET not in stored + caplog.text
    assert "webhook_failed webhook=ops waiting=0" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HOOK_URL", None, "environment variable HOOK_URL with the URL of webhook ops is not set here"),
        ("HOOK_SECRET", None, "environment variable HOOK_SECRET does not hold the secret of webhook ops here"),
        ("HOOK_SECRET", "short", "at least 16 bytes"),
        ("HOOK_SECRET", "whsec_%%%", "is not base64"),
    ],
)
def test_events_wait_for_a_process_with_url_and_secret(
    variable: str,
    value: str | None,
    message: str,
    registry: ModelRegistry,
    webhooks: Webhooks,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.promote(MODEL, 2, expected=1, reason="better")
    with monkeypatch.context() as elsewhere:
        elsewhere.delenv(variable) if value is None else elsewhere.setenv(variable, value)
        report = send(registry)
        assert (report.delivered, report.waiting, report.is_configured) == (0, 1, False)
        assert message in str(report.error)
    assert failures(webhooks) == []
    assert send(registry).delivered == 1


def test_secret_file_is_read_if_only_its_owner_may(registry: ModelRegistry, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o644)
    Webhooks(registry=registry).add("ops", url_env="HOOK_URL", secret_file=str(file))
    registry.promote(MODEL, 2, expected=1, reason="better")
    assert "chmod 600" in str(send(registry).error)
    file.chmod(0o600)
    assert send(registry).delivered == 1
    head, body = receiver.requests[0].headers, receiver.requests[0].body
    signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
    digest = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
    assert head["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_only_chosen_events_are_sent_and_each_webhook_has_its_own_records(
    registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver
) -> None:
    webhooks.add("rollbacks", url_env="HOOK_URL", secret_env="HOOK_SECRET", events=["rolled_back"])
    registry.promote(MODEL, 2, expected=1, reason="better")
    registry.rollback(MODEL, reason="slow")
    reports = {report.webhook: report.delivered for report in deliver(registry)}
    assert reports == {"ops": 2, "rollbacks": 1}
    assert sorted(receiver.events) == [("promoted", 2), ("rolled_back", 1), ("rolled_back", 1)]
    webhooks.remove("ops")
    assert [hook.name for hook in webhooks.hooks()] == ["rollbacks"]
    webhooks.add("ops", url_env="HOOK_URL", secret_env="HOOK_SECRET")
    assert {report.delivered for report in deliver(registry)} == {0}  # it is sent later events only


def test_model_that_is_new_after_the_webhook_is_sent_from_its_first_version(
    registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver, tmp_path: Path
) -> None:
    registry.add("other", tmp_path / "export", lineage=LINEAGE, evaluation=EVALUATION, idempotency_key="a")
    send(registry)
    assert [(request.message["model"], request.message["event"]) for request in receiver.requests] == [
        ("other", "registered")
    ]
    assert registry.names() == [MODEL, "other"]


def test_concurrent_deliveries_lose_nothing_and_share_the_id_of_an_event(
    registry: ModelRegistry, webhooks: Webhooks, receiver: Receiver
) -> None:
    for turn in range(4):
        registry.promote(MODEL, 2 - turn % 2, expected=1 + turn % 2, reason=f"move {turn}")
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: send(ModelRegistry.open(registry.uri)), range(3)))
    ids = {request.headers["webhook-id"] for request in receiver.requests}
    assert ids == {f"{MODEL}-change-{number:06d}" for number in range(2, 6)}
    assert send(registry).delivered == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"url_env": "https://hooks.example/s3cret", "secret_env": "S"},
        {"url_env": "U"},
        {"url_env": "U", "secret_env": "S", "secret_file": "/f"},
        {"url_env": "U", "secret_env": "S", "events": ["unknown"]},
    ],
)
def test_invalid_settings_are_refused(registry: ModelRegistry, settings: dict[str, object]) -> None:
    with pytest.raises(RegistryError):
        Webhooks(registry=registry).add("ops", **settings)  # type: ignore[arg-type]
    assert Webhooks(registry=registry).hooks() == []


def test_name_is_used_once_and_an_unknown_one_is_reported(registry: ModelRegistry, webhooks: Webhooks) -> None:
    with pytest.raises(RegistryError, match="exists already"):
        webhooks.add("ops", url_env="HOOK_URL", secret_env="HOOK_SECRET")
    with pytest.raises(RegistryError, match="no webhook"):
        webhooks.remove("other")


def test_registry_that_cannot_be_read_is_logged_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "registry.json").write_text("no JSON")
    deliver_quietly(str(tmp_path))
    assert "webhooks_failed" in caplog.text
