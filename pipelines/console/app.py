"""The console's web application. It is an ASGI application: uvicorn serves it, or a Serve deployment mounts it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.console import actions, api, pages
from pipelines.console.access import Console
from pipelines.console.audit import AuditLog
from pipelines.console.data.models import Models
from pipelines.console.data.runs import Runs
from pipelines.console.data.schedules import Schedules
from pipelines.console.problems import NotFoundError, NotSignedInError, message_of, status_of
from pipelines.console.rendering import render
from pipelines.console.sessions import Sessions
from pipelines.console.settings import LOOPBACK, ConsoleSettings
from rlad.errors import RladError

STATIC = Path(__file__).with_name("static")

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def create_app(settings: ConsoleSettings) -> FastAPI:
    """Return the application of a console.

    Raises:
        StorageError: The audit log cannot be written.
    """
    app = FastAPI(title="rlad console", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.console = Console(
        settings=settings,
        sessions=Sessions(settings.users),
        audit=AuditLog(settings.audit),
        runs=Runs(settings.runs),
        models=Models(settings.registry),
        schedules=Schedules(settings.schedules),
    )
    for routes in (actions.router, api.router, pages.router):
        app.include_router(routes)
    app.mount("/static", GZipMiddleware(StaticFiles(directory=STATIC), minimum_size=1000), name="static")
    app.add_exception_handler(RladError, _refusal)
    app.add_exception_handler(HTTPException, _http_refusal)
    app.add_middleware(_SecurityHeaders)
    if settings.is_loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"], www_redirect=False)
    return app


class _SecurityHeaders:
    """Middleware that adds the security headers, and forbids caches to keep pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Names of static files contain a version, so caches may keep them.
        caching = "public, max-age=31536000, immutable" if scope["path"].startswith("/static/") else "no-store"
        added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                caches = caching if message["status"] == 200 else "no-store"
                message["headers"] = [*message["headers"], *added, (b"cache-control", caches.encode())]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _refusal(request: Request, error: Exception) -> Response:
    """Answer an error: JSON for the API, the sign-in page for visitors without a session, a page otherwise."""
    assert isinstance(error, RladError)
    status, kind, message = status_of(error), type(error).__name__, message_of(error)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": kind, "message": message}, status)
    if isinstance(error, NotSignedInError) and request.url.path != "/sign-in":
        return RedirectResponse(f"/sign-in?next={quote(request.url.path)}", 303)
    return render(request, "problem.html", status=status, kind=kind, message=message)


def _http_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _refusal(request, NotFoundError(f"no page {request.url.path[:200]}"))
    return JSONResponse({"error": "HTTPException", "message": error.detail}, error.status_code)
