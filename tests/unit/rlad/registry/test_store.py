"""Stores: URIs, unreachable servers, layouts and conditional writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rlad.errors import RegistryError
from rlad.registry.registry import ModelRegistry
from rlad.registry.store import open_store
from rlad.registry.versions import ModelVersion

NAME = "kk-student"


def test_store_without_conditional_writes_is_rejected(
    add: Callable[..., ModelVersion],
    write: Callable[[ModelRegistry, str, bytes], None],
    registry: ModelRegistry,
    model: Path,
) -> None:
    def overwrite(path: str, content: bytes) -> bool:
        write(registry, path.removeprefix(f"{registry.store.root}/"), content)
        return True

    if (root := registry.store.local_path("")) is not None:
        root.mkdir()
    careless = ModelRegistry(store=replace(registry.store, create_at=overwrite))
    for _ in range(2):
        with pytest.raises(RegistryError, match="so two writers could take the same version number"):
            add(careless, "a", model)
    assert registry.names() == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hdfs://name/registry", "expected a local path, s3://bucket/prefix or gs://bucket/prefix"),
        ("s3://key:secret@bucket/registry", "must not contain credentials"),
        (
            "s3://bucket/registry?access_key=a&secret_key=b",
            "unknown option access_key, secret_key .* s3 supports endpoint_override, region, scheme",
        ),
        ("s3:///registry", "which has no bucket"),
    ],
)
def test_invalid_uri_is_rejected(uri: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        open_store(uri)
    assert "secret@" not in str(caught.value)


def test_missing_bucket_is_named_in_the_error(add: Callable[..., ModelVersion], s3_uri: str, model: Path) -> None:
    registry = ModelRegistry.open(s3_uri.replace("s3://bucket", "s3://nowhere"))
    with pytest.raises(RegistryError, match="registry at s3://nowhere"):
        add(registry, "a", model)


def test_unreachable_server_is_named_in_the_error() -> None:
    with pytest.raises(RegistryError, match=r"registry at s3://bucket/registry\?.* could not read registry.json"):
        ModelRegistry.open("s3://bucket/registry?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")


def test_registry_with_another_layout_is_rejected(local: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "registry.json").write_text('{"layout": 2}')
    with pytest.raises(RegistryError, match="expected layout 1; got 2"):
        ModelRegistry.open(local.uri)


@pytest.fixture
def google_storage() -> Iterator[tuple[str, dict[str, bytes]]]:
    """host:port of a server that handles uploads as Google Cloud Storage does, and its contents."""
    held: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = query["name"][0]
            is_refused = query.get("ifGenerationMatch") == ["0"] and name in held
            if request.path == "/upload/storage/v1/b/models/o" and query["uploadType"] == ["media"] and not is_refused:
                held[name] = body
            self.send_response(412 if is_refused else 200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", held
    server.shutdown()
    server.server_close()


def test_gcs_create_sends_the_precondition(google_storage: tuple[str, dict[str, bytes]]) -> None:
    endpoint, held = google_storage
    store = open_store(f"gs://models/team/registry?endpoint_override={endpoint}&scheme=http&anonymous=true")
    path = f"{store.root}/kk-student/versions/000001.json"
    assert [store.create_at(path, b"first"), store.create_at(path, b"second")] == [True, False]
    assert held == {"team/registry/kk-student/versions/000001.json": b"first"}
