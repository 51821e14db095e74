"""A console over stand-in runs, and a browser-like client for each role."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipelines.console.app import create_app
from pipelines.console.settings import ConsoleSettings
from tests.console_stand_in import TOKENS, RecordedRequests, users, write_all, write_registry

ORIGIN = "http://127.0.0.1"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ConsoleSettings:
    """Return the settings of a console over runs that tests only read."""
    return write_all(tmp_path_factory.mktemp("console"))


@pytest.fixture
def settings(written: ConsoleSettings, tmp_path: Path) -> ConsoleSettings:
    """Return settings with a registry, an audit log and requests of this test's own."""
    write_registry(str(tmp_path / "registry"), tmp_path)
    return replace(
        written,
        registry=str(tmp_path / "registry"),
        audit=tmp_path / "audit.jsonl",
        users=users(),
        live=RecordedRequests(),
    )


@pytest.fixture
def visit(settings: ConsoleSettings) -> Iterator[Callable[..., TestClient]]:
    """Return a function that signs a user in and returns the client; without a name, an anonymous one."""
    app = create_app(settings)
    opened = []

    def open_client(name: str | None = None) -> TestClient:
        client = TestClient(app, base_url=ORIGIN, follow_redirects=False)
        opened.append(client)
        if name is not None:
            assert sign_in(client, TOKENS[name]).status_code == 303
        return client

    yield open_client
    for client in opened:
        client.close()


def sign_in(client: TestClient, token: str, **fields: str):  # type: ignore[no-untyped-def]
    """Send the sign-in form as the page has it."""
    csrf = csrf_of(client.get("/sign-in").text)
    return client.post("/sign-in", data={"token": token, "csrf": csrf, **fields})


def csrf_of(page: str) -> str:
    """Return the CSRF token of the first form of a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]
