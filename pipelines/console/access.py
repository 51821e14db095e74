"""Access to the console: who sends a request, which role it requires, and its form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request

from pipelines.console.audit import Actor, AuditLog
from pipelines.console.data.models import Models
from pipelines.console.data.runs import Runs
from pipelines.console.data.schedules import Schedules
from pipelines.console.data.timeline import Timelines
from pipelines.console.problems import ForbiddenError, NotSignedInError, RequestTooLargeError
from pipelines.console.sessions import Notice, Session, Sessions
from pipelines.console.settings import ConsoleSettings
from pipelines.console.users import LOCAL_VIEWER, Role, User
from rlad.errors import ConfigError

SESSION_COOKIE, SIGN_IN_COOKIE = "rlad_console", "rlad_console_sign_in"
_MAX_FORM_BYTES = 16 << 10
_MAX_FIELDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """Everything that the routes of one console share.

    Attributes:
        settings: The settings.
        sessions: Sessions of signed-in users.
        audit: The audit log.
        runs, timelines, models, schedules: Data of the pages.
    """

    settings: ConsoleSettings
    sessions: Sessions
    audit: AuditLog
    runs: Runs
    models: Models
    schedules: Schedules
    timelines: Timelines = field(default_factory=Timelines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Author of a request.

    Attributes:
        user: The user.
        session: Session of the user; None on a console without users.
        client: Address that the request came from.
    """

    user: User
    session: Session | None
    client: str

    @property
    def csrf(self) -> str:
        """CSRF token for the forms of a page; empty on a console without users, which has none."""
        return "" if self.session is None else self.session.csrf

    @property
    def actor(self) -> Actor:
        """Author in the audit log."""
        return Actor(name=self.user.name, role=self.user.role.label, client=self.client)

    def may(self, role: str) -> bool:
        """Return whether the user may do what requires a role. Pages use it to leave out actions."""
        return self.session is not None and self.user.role >= Role[role.upper()]

    def notify(self, text: str, *, is_error: bool = False) -> None:
        """Show a message on the next page."""
        if self.session is not None:
            self.session.notices.append(Notice(text=text, is_error=is_error))


def console_of(request: Request) -> Console:
    """Return the console of a request."""
    console: Console = request.app.state.console
    return console


def visitor_of(request: Request) -> Visitor:
    """Return the author of a request.

    Raises:
        NotSignedInError: The request has no session.
    """
    console, client = console_of(request), request.client.host if request.client is not None else "-"
    if not console.settings.users:
        return Visitor(user=LOCAL_VIEWER, session=None, client=client)
    session = console.sessions.get(request.cookies.get(SESSION_COOKIE))
    if session is None:
        raise NotSignedInError("sign in first")
    return Visitor(user=session.user, session=session, client=client)


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form that a page of this console sent.

    Raises:
        ForbiddenError: The request came from a page of another site.
        ConfigError: The body is no form.
        RequestTooLargeError: The form is too large.
    """
    _require_same_origin(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise RequestTooLargeError(f"the form exceeds {_MAX_FORM_BYTES} bytes")
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise ConfigError("the body is no URL-encoded form") from error
    return dict(fields)


Form = Annotated[dict[str, str], Depends(form_of)]
Viewer = Annotated[Visitor, Depends(visitor_of)]
TheConsole = Annotated[Console, Depends(console_of)]


def acting(role: Role) -> Callable[[Visitor, dict[str, str]], Visitor]:
    """Return a dependency of actions: a signed-in user with a role, and a form with the CSRF token of the session."""

    def require(visitor: Viewer, form: Form) -> Visitor:
        if visitor.session is None:
            raise ForbiddenError("this console has no users, so it only shows: start it with --users to act")
        visitor.session.require_csrf(form.get("csrf", ""))
        if visitor.user.role < role:
            raise ForbiddenError(
                f"this action requires the role {role.label}; {visitor.user.name} has {visitor.user.role.label}"
            )
        return visitor

    return require


def _require_same_origin(request: Request) -> None:
    """Refuse a form of another site. Browsers send at least one of these headers with a form."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")
    if site not in (None, "same-origin") or is_foreign:
        raise ForbiddenError("the form was sent by a page of another site")
