"""A registry with two versions, and a server that records the webhooks it receives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlad.registry.registry import ModelRegistry
from tests.registry_records import EVALUATION, LINEAGE

MODEL = "kk-student"
SECRET = "0123456789abcdef-secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request: its path, headers in lower case, and body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass(slots=True)
class Receiver:
    """Requests that the server received, and the statuses of its next answers."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: list[Received] = field(default_factory=list)

    @property
    def events(self) -> list[tuple[str, int]]:
        return [(request.message["event"], request.message["version"]) for request in self.requests]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """The server, whose URL and secret are in the environment."""
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received.requests.append(Received(path=self.path, headers=headers, body=body))
            status = received.statuses.pop(0) if received.statuses else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        received.url = f"http://127.0.0.1:{server.server_address[1]}/hooks/s3cret-path"
        monkeypatch.setenv("HOOK_URL", received.url)
        monkeypatch.setenv("HOOK_SECRET", SECRET)
        yield received
        server.shutdown()


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A registry with version 1 in production, and version 2."""
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    for key in ("a", "b"):
        opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key=key)
    opened.promote(MODEL, 1, expected=None, reason="the first")
    return opened
