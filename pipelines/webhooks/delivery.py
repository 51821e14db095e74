"""Delivery of a registry's events to its webhooks, signed as in the Standard Webhooks specification.

A delivery never fails the change that it reports: the change is complete before, and errors become records.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.webhooks.posting import POST_ERRORS, described, post
from rlad.credentials import redact
from rlad.errors import RegistryError
from rlad.registry.registry import ModelRegistry
from rlad.registry.webhooks import Event, Webhook, Webhooks

logger = logging.getLogger(__name__)

_SECRET_PREFIX = "whsec_"
_SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """Result of a delivery to one webhook.

    Attributes:
        webhook: Name of the webhook.
        delivered: Number of events that were delivered.
        waiting: Number of events that are still to be sent.
        error: Reason why the delivery ended early; None if it did not.
        is_configured: Whether the URL and the secret are available to this process.
    """

    webhook: str
    delivered: int
    waiting: int
    error: str | None
    is_configured: bool = True


def deliver(
    registry: ModelRegistry, *, again: bool = False, timeout_s: float = 5.0, first_wait_s: float = 1.0
) -> list[DeliveryReport]:
    """Send all events that were not sent yet to the webhooks of a registry.

    An event that fails in all attempts becomes a dead letter, and ends the delivery to its webhook: later events wait
    for the next delivery, so that a receiver that is down costs one event's attempts only.

    Args:
        registry: The registry.
        again: Send dead letters again, too.
        timeout_s: Deadline of one attempt, in seconds.
        first_wait_s: Pause after the first attempt, in seconds.

    Raises:
        RegistryError: The registry cannot be read or written.
    """
    webhooks = Webhooks(registry=registry)
    return [
        _deliver_to(webhooks, hook, again=again, timeout_s=timeout_s, first_wait_s=first_wait_s)
        for hook in webhooks.hooks()
    ]


def deliver_quietly(uri: str, *, first_wait_s: float = 1.0) -> None:
    """Send the events of the registry at a URI after a change of it. Failures are logged, and never raised.

    A process without the URL or the secret of a webhook leaves its events to another one.
    """
    try:
        reports = deliver(ModelRegistry.open(uri), first_wait_s=first_wait_s)
    except Exception as error:  # noqa: BLE001 - the change is complete, and must not appear to have failed
        logger.warning("webhooks_failed error=%s: %s", type(error).__name__, redact(str(error)))
        return
    for report in reports:
        if report.error is not None and report.is_configured:
            logger.warning(
                "webhook_failed webhook=%s waiting=%d error=%s", report.webhook, report.waiting, report.error
            )


def signature_headers(secret: bytes, event_id: str, content: bytes, *, now: float) -> dict[str, str]:
    """Return the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` of a message.

    The signature is `v1,` and the base64 form of HMAC-SHA256 over `ID.TIMESTAMP.CONTENT`.
    """
    timestamp = str(int(now))
    digest = hmac.new(secret, b".".join((event_id.encode(), timestamp.encode(), content)), hashlib.sha256).digest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _deliver_to(
    webhooks: Webhooks, hook: Webhook, *, again: bool, timeout_s: float, first_wait_s: float
) -> DeliveryReport:
    pending, failed = webhooks.undelivered(hook)
    events = sorted([*(event for event, _ in failed), *pending], key=lambda event: event.at) if again else pending
    delivered, error = 0, None
    try:
        url, secret = _url(hook), _secret(hook)
    except RegistryError as problem:
        return DeliveryReport(
            webhook=hook.name, delivered=0, waiting=len(events), error=str(problem), is_configured=False
        )
    for event in events:
        message = _SignedMessage(event, webhooks.registry.uri, secret)
        try:
            post(url, message.content, message.headers, timeout_s=timeout_s, first_wait_s=first_wait_s)
        except POST_ERRORS as failure:
            error = described(failure, hook.name)
        webhooks.record(hook, event, attempts=message.attempts, error=error)
        if error is not None:
            break
        delivered += 1
    waiting = len(events) - delivered - (error is not None)
    return DeliveryReport(webhook=hook.name, delivered=delivered, waiting=waiting, error=error)


class _SignedMessage:
    """An event as JSON. Each attempt has a signature of its own time."""

    def __init__(self, event: Event, registry: str, secret: bytes) -> None:
        self._id, self._secret, self.attempts = event.id, secret, 0
        head = {"id": event.id, "event": event.kind, "registry": registry, "model": event.model, "at": event.at}
        self.content = json.dumps({**head, **event.facts}).encode()

    def headers(self) -> Mapping[str, str]:
        self.attempts += 1
        return signature_headers(self._secret, self._id, self.content, now=time.time())


def _url(hook: Webhook) -> str:
    url = os.environ.get(hook.url_env, "").strip()
    if not url:
        raise RegistryError(f"environment variable {hook.url_env} with the URL of webhook {hook.name} is not set here")
    return url


def _secret(hook: Webhook) -> bytes:
    """Return the key of the signature: the bytes of the text, or of the base64 text after `whsec_`."""
    if hook.secret_env is not None:
        where, text = f"environment variable {hook.secret_env}", os.environ.get(hook.secret_env, "").strip()
    else:
        path = Path(hook.secret_file or "").expanduser()
        where, text = str(path), _read_secret(path)
    try:
        encoded = text.removeprefix(_SECRET_PREFIX)
        secret = base64.b64decode(encoded, validate=True) if text.startswith(_SECRET_PREFIX) else text.encode()
    except binascii.Error as error:
        raise RegistryError(f"{where}: the secret after {_SECRET_PREFIX} is not base64") from error
    if len(secret) < _SHORTEST_SECRET:
        raise RegistryError(
            f"{where} does not hold the secret of webhook {hook.name} here: expected at least {_SHORTEST_SECRET} "
            "bytes; create one with `openssl rand -hex 32`"
        )
    return secret


def _read_secret(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"cannot read the secret of a webhook from {path}: {type(error).__name__}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RegistryError(f"other users of this machine may read {path}: run `chmod 600 {path}`")
    return text
