"""Notification of a tick's end, by webhook and by command. A failed notification never fails the tick."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from pipelines.schedules.records import Tick
from rlad.config.schedule import NotifyConfig
from rlad.credentials import redact
from rlad.errors import ScheduleError

_ATTEMPTS = 3
# httpx logs every URL that it calls, and a webhook's URL is a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)


def notify(settings: NotifyConfig, tick: Tick, *, model: str) -> str | None:
    """Send the configured notifications.

    Returns:
        The error messages, joined by semicolons, or None if every notification was sent or none is configured.
    """
    if tick.event not in settings.events:
        return None
    message, failures = message_of(tick, model=model), list[str]()
    for send, is_configured in ((_post, settings.webhook_env is not None), (_run, bool(settings.command))):
        if is_configured:
            try:
                send(settings, message)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, subprocess.SubprocessError, ScheduleError) as error:
                failures.append(_without_secrets(settings, error))
    return "; ".join(failures) or None


def message_of(tick: Tick, *, model: str) -> dict[str, Any]:
    """Return the notification's JSON. `text` summarises it in one line, for chat services."""
    outcome = asdict(tick.outcome) if tick.outcome is not None else None
    return {
        "text": _sentence(tick, model),
        "schedule": tick.schedule,
        "event": tick.event,
        "run_id": tick.run_id,
        "scheduled_at": datetime.fromtimestamp(tick.scheduled_at, UTC).isoformat(),
        "attempts": tick.attempts,
        "reason": tick.reason,
        "model": model,
        "outcome": outcome,
        "cost": asdict(tick.cost) if tick.cost is not None else None,
    }


def _sentence(tick: Tick, model: str) -> str:
    return _result(tick, model) + (f" (cost: {tick.cost})" if tick.cost is not None else "")


def _result(tick: Tick, model: str) -> str:
    if tick.outcome is not None and tick.status == "finished":
        result = "is in production now" if tick.outcome.is_promoted else "was not promoted"
        return f"{tick.schedule}: {model}@{tick.outcome.version} {result}: {tick.outcome.reason}"
    return f"{tick.schedule}: {tick.event}" + (f": {tick.reason}" if tick.reason else "")


def _post(settings: NotifyConfig, message: dict[str, Any]) -> None:
    assert settings.webhook_env is not None
    url = _from_environment(settings.webhook_env)
    headers = (
        {"Authorization": f"Bearer {_from_environment(settings.token_env)}"} if settings.token_env is not None else {}
    )
    for attempt in Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential_jitter(initial=1, max=10, jitter=1),
        reraise=True,
    ):
        with attempt:
            httpx.post(url, json=message, headers=headers, timeout=settings.timeout_s).raise_for_status()


def _is_transient(error: BaseException) -> bool:
    """Return False for requests that can never be sent: a line break in the token, or an unsupported URL scheme."""
    return isinstance(error, httpx.HTTPError) and not isinstance(
        error, httpx.LocalProtocolError | httpx.UnsupportedProtocol
    )


def _run(settings: NotifyConfig, message: dict[str, Any]) -> None:
    result = subprocess.run(
        settings.command,
        input=json.dumps(message),
        capture_output=True,
        text=True,
        timeout=settings.timeout_s,
        check=False,
    )
    if result.returncode != 0:
        raise ScheduleError(
            f"command {settings.command[0]} ended with status {result.returncode}: {result.stderr.strip()[-200:]}"
        )


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ScheduleError(f"environment variable {name} is not set")
    return value


def _without_secrets(settings: NotifyConfig, error: Exception) -> str:
    """Describe an error without secrets, such as the webhook's URL, which HTTP errors contain."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"webhook {settings.webhook_env} answered with status {error.response.status_code}"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"webhook {settings.webhook_env} does not answer: {type(error).__name__}"
    return redact(str(error))
