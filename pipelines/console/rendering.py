"""Rendering of the console's pages. Every value is escaped, and a missing one is an error."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.console.access import SESSION_COOKIE, Visitor, console_of
from rlad import __version__

_HERE = Path(__file__).parent


def render(
    request: Request, template: str, *, status: int = 200, visitor: Visitor | None = None, **values: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        request: The request.
        template: Name of the template.
        status: HTTP status.
        visitor: Author of the request; None uses the session, if there is one.
        values: Values of the template.
    """
    console = console_of(request)
    session = visitor.session if visitor is not None else console.sessions.get(request.cookies.get(SESSION_COOKIE))
    if visitor is None and session is not None:
        visitor = Visitor(user=session.user, session=session, client="-")
    notices = []
    while session is not None and session.notices:
        notices.append(session.notices.popleft())
    page = _environment().get_template(template)
    shared = {
        "visitor": visitor,
        "notices": notices,
        "has_users": bool(console.settings.users),
        "path": request.url.path,
        "rlad_version": __version__,
        "asset": asset,
        "status": status,
    }
    return HTMLResponse(page.render(**{**shared, **values}), status)


@cache
def asset(name: str) -> str:
    """Return the URL of a static file, which changes with its content."""
    content = (_HERE / "static" / name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "time": _time, "duration": _duration, "number": _number, "size": _size}
    return environment


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{share:.{digits}%}"


def _time(moment: float | str | datetime | None) -> str:
    """Format seconds since the epoch, or an ISO 8601 time, in UTC."""
    if moment is None or moment == 0:
        return "–"
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    at = moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    return at.strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
