"""HTTP server of `rlad schedule serve` for triggers: `POST /schedules/NAME/trigger` with a bearer token."""

from __future__ import annotations

import hmac
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy.exc import SQLAlchemyError

from pipelines.schedules.store import ScheduleStore
from rlad.errors import ConfigError, RladError

logger = logging.getLogger(__name__)

MIN_TOKEN_LENGTH = 16
_PATH = re.compile(r"/schedules/([A-Za-z0-9][A-Za-z0-9._-]{0,39})/trigger")
_MAX_BODY_BYTES = 4096
_TIMEOUT_S = 10.0


@contextmanager
def serving_triggers(store: ScheduleStore, *, token: str, host: str, port: int) -> Iterator[int]:
    """Serve triggers over HTTP during the block, and yield the port.

    Args:
        store: The store.
        token: Token that requests must carry: `Authorization: Bearer TOKEN`.
        host: Address to listen on.
        port: Port; 0 chooses a free one.

    Raises:
        ConfigError: The token is short, or the address is in use or does not exist.
    """
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(
            f"the token for triggers requires at least {MIN_TOKEN_LENGTH} characters; got {len(token)}: set the "
            "variable that --trigger-token-env names"
        )

    class Handler(_Handler):
        pass

    Handler.store, Handler.token = store, token
    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"cannot serve triggers at {host}:{port}: {error.strerror}. Choose another port") from error
    thread = threading.Thread(target=server.serve_forever, name="triggers", daemon=True)
    thread.start()
    try:
        logger.info("triggers=serving host=%s port=%d", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=_TIMEOUT_S)


class _Handler(BaseHTTPRequestHandler):
    store: ScheduleStore
    token: str
    timeout = _TIMEOUT_S
    server_version, sys_version = "rlad", ""

    def do_POST(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        found = _PATH.fullmatch(self.path)
        length = self.headers.get("Content-Length", "0")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            self._answer(HTTPStatus.UNAUTHORIZED, error="the token is missing or wrong")
        elif found is None:
            self._answer(HTTPStatus.NOT_FOUND, error="expected /schedules/NAME/trigger")
        elif not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error=f"expected at most {_MAX_BODY_BYTES} bytes")
        else:
            self._trigger(found[1], self.rfile.read(int(length)))

    def _trigger(self, name: str, body: bytes) -> None:
        try:
            content = json.loads(body or b"{}")
            key = content.get("key") if isinstance(content, dict) else 0
            if key is not None and not isinstance(key, str):
                raise ValueError("expected the key as text")
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, error='expected JSON such as {"key": "data-2026-11-30"}')
            return
        try:
            if name not in {schedule.name for schedule in self.store.schedules()}:
                self._answer(HTTPStatus.NOT_FOUND, error="no schedule has this name")
            elif self.store.schedule(name).is_paused:
                self._answer(HTTPStatus.CONFLICT, error="the schedule is paused")
            else:
                is_new = self.store.triggers.add(name, key=key)
                logger.info("triggered schedule=%s is_new=%s client=%s", name, is_new, self.client_address[0])
                self._answer(HTTPStatus.ACCEPTED if is_new else HTTPStatus.OK, schedule=name, is_new=is_new)
        except RladError as error:
            self._answer(HTTPStatus.BAD_REQUEST, error=str(error))
        except SQLAlchemyError as error:
            logger.warning("trigger_failed schedule=%s error=%s", name, error)
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, error="the schedule store does not answer")

    def _answer(self, status: HTTPStatus, **content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
        logger.debug("http=%s", format % args)
