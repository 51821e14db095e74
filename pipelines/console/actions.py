"""Actions of the console: forms that change something. Each is in the audit log before it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from starlette.background import BackgroundTask

from pipelines.console.access import (
    SESSION_COOKIE,
    SIGN_IN_COOKIE,
    Form,
    TheConsole,
    Viewer,
    Visitor,
    acting,
)
from pipelines.console.audit import Actor
from pipelines.console.problems import NotFoundError, message_of
from pipelines.console.users import Role
from pipelines.webhooks.delivery import deliver_quietly
from rlad.errors import AccessError, ConfigError, RladError

router = APIRouter()

Operator = Annotated[Visitor, Depends(acting(Role.OPERATE))]
Approver = Annotated[Visitor, Depends(acting(Role.APPROVE))]

_MAX_WORKERS = 100_000


@router.post("/sign-in")
def sign_in(request: Request, form: Form, console: TheConsole) -> Response:
    """Start a session for the user with the token of the form."""
    client = request.client.host if request.client is not None else "-"
    console.sessions.require_sign_in_csrf(request.cookies.get(SIGN_IN_COOKIE), form.get("csrf", ""))
    try:
        identifier, session = console.sessions.sign_in(form.get("token", "").strip(), client=client)
    except AccessError as error:
        console.audit.write(
            Actor(name="-", role="-", client=client), "sign in", "console", "refused", {"error": type(error).__name__}
        )
        raise
    actor = Actor(name=session.user.name, role=session.user.role.label, client=client)
    console.audit.write(actor, "sign in", "console", "done", {})
    response = RedirectResponse(local_path(form.get("next", "")), 303)
    response.set_cookie(
        SESSION_COOKIE, identifier, httponly=True, samesite="strict", secure=console.settings.is_encrypted, path="/"
    )
    response.delete_cookie(SIGN_IN_COOKIE, path="/sign-in")
    return response


@router.post("/sign-out")
def sign_out(
    request: Request, visitor: Annotated[Visitor, Depends(acting(Role.VIEW))], console: TheConsole
) -> Response:
    """End the session."""
    console.sessions.sign_out(request.cookies.get(SESSION_COOKIE))
    console.audit.write(visitor.actor, "sign out", "console", "done", {})
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE, path="/")
    return response


@router.post("/runs/{name:path}/stop")
def stop(name: str, visitor: Operator, console: TheConsole) -> Response:
    """Request a run to end after its current step."""
    run = console.runs.find(name)

    def act() -> str:
        console.settings.live.stop(run)
        return f"{name} ends after its current step"

    return _carry_out(console, visitor, "stop run", name, {}, act, back=f"/runs/{quote(name)}")


@router.post("/runs/{name:path}/scale")
def scale(name: str, form: Form, visitor: Operator, console: TheConsole) -> Response:
    """Request another size of a pool."""
    run, pool, text = console.runs.find(name), form.get("pool", ""), form.get("workers", "").strip()
    back = f"/runs/{quote(name)}"

    def act() -> str:
        if not text.isdecimal() or not text.isascii() or len(text) > 6 or not 1 <= int(text) <= _MAX_WORKERS:
            raise ConfigError(f"expected a number of workers from 1 to {_MAX_WORKERS}; got {text[:20]!r}")
        console.settings.live.scale(run, {pool: int(text)})
        return f"{pool} of {name} is being scaled to {int(text)} workers"

    return _carry_out(console, visitor, "scale pool", name, {"pool": pool[:80], "workers": text[:20]}, act, back=back)


@router.post("/registry/{name}/{version}/approve")
def approve(name: str, version: int, form: Form, visitor: Approver, console: TheConsole) -> Response:
    """Approve a version for promotion, or carry out the promotion that another person requested."""
    reason = _reason(form, visitor)

    def act() -> str:
        return console.models.approve(name, version, expected=_expected(form), reason=reason, user=visitor.user.name)

    return _move(console, visitor, "approve version", name, version, reason, act)


@router.post("/registry/{name}/{version}/refuse")
def refuse(name: str, version: int, form: Form, visitor: Approver, console: TheConsole) -> Response:
    """Refuse the promotion of a version that was requested."""
    reason = _reason(form, visitor)

    def act() -> str:
        console.models.refuse(name, version, reason=reason, user=visitor.user.name)
        return f"{name}@{version} is not promoted"

    return _move(console, visitor, "refuse version", name, version, reason, act)


@router.post("/registry/{name}/{version}/promote")
def promote(name: str, version: int, form: Form, visitor: Operator, console: TheConsole) -> Response:
    """Put the approved version into production, or request its promotion if the model requires approval."""
    reason = _reason(form, visitor)

    def act() -> str:
        return console.models.promote(name, version, expected=_expected(form), reason=reason, user=visitor.user.name)

    return _move(console, visitor, "promote version", name, version, reason, act)


@router.post("/registry/{name}/{version}/roll-back")
def roll_back(name: str, version: int, form: Form, visitor: Operator, console: TheConsole) -> Response:
    """Put the version before this one, which is in production, into production again."""
    reason = _reason(form, visitor)

    def act() -> str:
        before = console.models.roll_back(name, expected=version, reason=reason)
        return f"{name}@{before} is in production again"

    return _move(console, visitor, "roll back version", name, version, reason, act)


def local_path(target: str) -> str:
    """Return a path of this console to go to after the sign-in; `/` for anything else."""
    is_local = target.startswith("/") and not target.startswith("//") and target.isprintable() and "\\" not in target
    return quote(target, safe="/%") if is_local else "/"


def _move(
    console: TheConsole, visitor: Viewer, action: str, name: str, version: int, reason: str, act: Callable[[], str]
) -> Response:
    if name not in console.models.names():
        raise NotFoundError(f"no model {name[:80]!r} in the registry")
    target, details = f"{name}@{version}", {"reason": reason[:500]}
    response = _carry_out(console, visitor, action, target, details, act, back=f"/registry/{quote(name)}")
    response.background = BackgroundTask(deliver_quietly, console.models.uri)
    return response


def _carry_out(
    console: TheConsole,
    visitor: Viewer,
    action: str,
    target: str,
    details: dict[str, str],
    act: Callable[[], str],
    *,
    back: str,
) -> Response:
    """Carry out an action with its audit entries, and go back to a page that shows what came of it."""
    try:
        with console.audit.recording(visitor.actor, action, target, details):
            text = act()
    except RladError as error:
        visitor.notify(f"{type(error).__name__}: {message_of(error)}", is_error=True)
    else:
        visitor.notify(text)
    return RedirectResponse(back, 303)


def _reason(form: dict[str, str], visitor: Visitor) -> str:
    """Return the reason with the user, since the registry records the process of the console as the author."""
    reason = form.get("reason", "").strip()
    if not reason:
        raise ConfigError("the change requires a reason, which the history keeps")
    return f"{reason[:500]} ({visitor.user.name}, console)"


def _expected(form: dict[str, str]) -> int | None:
    """Return the version that the alias had on the page."""
    text = form.get("expected", "")
    if text == "":
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"expected the number of a version; got {text[:20]!r}")
    return int(text)
