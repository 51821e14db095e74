"""Telling how a tick ended, by webhook and by command. The receiver's trouble is recorded, never the tick's end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from pipelines.schedules.records import Tick
from rlad.config.schedule import NotifyConfig
from rlad.errors import ScheduleError

_ATTEMPTS = 3
# It writes every URL it calls into the log.
logging.getLogger("httpx").setLevel(logging.WARNING)


def notify(settings: NotifyConfig, tick: Tick, *, model: str) -> str | None:
    """Tell everybody that wants to know.

    Returns:
        What did not work, for the record; None if all did or nobody wants to know.
    """
    if tick.event not in settings.events:
        return None
    message, troubles = message_of(tick, model=model), list[str]()
    for tell, wanted in ((_post, settings.webhook_env is not None), (_run, bool(settings.command))):
        if wanted:
            try:
                tell(settings, message)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, subprocess.SubprocessError, ScheduleError) as error:
                troubles.append(_without_secrets(settings, error))
    return "; ".join(troubles) or None


def message_of(tick: Tick, *, model: str) -> dict[str, Any]:
    """What is sent. `text` is the whole in one line, for chats that show nothing else."""
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
    }


def _sentence(tick: Tick, model: str) -> str:
    if tick.outcome is not None and tick.status == "finished":
        told = "is in production now" if tick.outcome.is_promoted else "was not promoted"
        return f"{tick.schedule}: {model}@{tick.outcome.version} {told}: {tick.outcome.reason}"
    return f"{tick.schedule}: {tick.event}" + (f": {tick.reason}" if tick.reason else "")


def _post(settings: NotifyConfig, message: dict[str, Any]) -> None:
    assert settings.webhook_env is not None
    url = _from_environment(settings.webhook_env)
    headers = (
        {"Authorization": f"Bearer {_from_environment(settings.token_env)}"} if settings.token_env is not None else {}
    )
    for attempt in Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(max=10),
        reraise=True,
    ):
        with attempt:
            httpx.post(url, json=message, headers=headers, timeout=settings.timeout_s).raise_for_status()


def _may_pass(error: BaseException) -> bool:
    """A request that cannot be sent, for a line break in the token or a URL of no known kind, cannot be sent the next time either."""
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
            f"{settings.command[0]} ended with status {result.returncode}: {result.stderr.strip()[-200:]}"
        )


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ScheduleError(f"the environment variable {name} is not set")
    return value


def _without_secrets(settings: NotifyConfig, error: Exception) -> str:
    """An HTTP error's text holds the URL, and a webhook's URL is its password."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the webhook of {settings.webhook_env} answered with status {error.response.status_code}"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"the webhook of {settings.webhook_env} does not answer: {type(error).__name__}"
    return str(error)
