"""Prompt files on object stores: found, fetched once, fingerprinted, and refused with the remedy."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from rlad.config import PromptFile
from rlad.data.prompt_files import PromptReading, read_prompts
from rlad.errors import DataError


def lines(*answers: int) -> bytes:
    rows = ({"question": f"{answer}?", "answer": str(answer)} for answer in answers)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Bucket:
    """Bucket of the S3 server on loopback."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.client = boto3.client("s3", endpoint_url=f"http://{endpoint}")
        self.name = f"prompts-{uuid.uuid4().hex[:8]}"
        self.client.create_bucket(Bucket=self.name)
        self.options = f"?endpoint_override={endpoint}&scheme=http"

    def put(self, **files: bytes) -> None:
        for key, content in files.items():
            self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def read(self, key: str, **settings: Any) -> PromptReading:
        return read_prompts(PromptFile(path=f"s3://{self.name}/{key}{self.options}", **settings))

    def answers(self, key: str) -> list[str]:
        return [record.answer for record in self.read(key).records]


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("RLAD_CACHE", str(tmp_path / "cache"))
    return Bucket(s3_endpoint)


def test_files_folders_and_globs_are_read(bucket: Bucket) -> None:
    files = {
        "math/part-1.jsonl": lines(1),
        "math/part-2.JSONL": lines(2),
        "math/deep/part-3.jsonl": lines(3),
        "math/.hidden.jsonl": lines(9),
        "math/_SUCCESS": b"",
        "math/readme.md": b"# no rows",
        "logic/rows.jsonl": lines(4),
    }
    bucket.put(**files)
    assert bucket.answers("math/part-1.jsonl") == ["1"]
    assert bucket.answers("math") == bucket.answers("math/") == ["3", "1", "2"]
    assert bucket.answers("math/*.jsonl") == ["1"]
    assert bucket.answers("math/part-[12].*") == ["1", "2"]
    assert bucket.answers("math/**/*.jsonl") == ["3", "1"]
    assert bucket.answers("*/rows.jsonl") == ["4"]
    assert bucket.answers("**/part-*") == ["3", "1", "2"]


def test_file_is_fetched_once_and_again_after_it_changed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(rows=lines(1))
    first = bucket.read("rows")
    [file] = first.files
    assert file.path == f"s3://{bucket.name}/rows"
    assert file.version == hashlib.sha256(lines(1)).hexdigest()
    assert first.versions == {file.path: file.version}
    [copy] = (tmp_path / "cache").rglob("rows")
    written = copy.stat().st_mtime_ns
    assert bucket.read("rows").versions == first.versions
    assert copy.stat().st_mtime_ns == written
    copy.unlink()  # a lost copy is fetched again
    assert bucket.answers("rows") == ["1"]
    bucket.put(rows=lines(2))  # the same length within the same second
    changed = bucket.read("rows")
    assert [record.answer for record in changed.records] == ["2"]
    assert changed.versions != first.versions


def test_errors_name_the_uri_and_row_not_the_copy(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(**{"a.jsonl": lines(1) + b'{"question": "2?", "answer": null}\n', "b.jsonl": b'{"question": \n'})
    with pytest.raises(DataError) as refusal:
        bucket.read("a.jsonl")
    assert str(refusal.value).startswith(f"s3://{bucket.name}/a.jsonl, line 2: missing answer")
    with pytest.raises(DataError) as refusal:
        bucket.read("b.jsonl")
    assert str(refusal.value).startswith(f"s3://{bucket.name}/b.jsonl, line 1: not valid JSON")
    bucket.put(**{"lfs.jsonl": b"version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(DataError) as refusal:
        bucket.read("lfs.jsonl")
    assert str(refusal.value).startswith(f"s3://{bucket.name}/lfs.jsonl is a Git LFS pointer")
    assert bucket.read("a.jsonl", invalid_rows="drop").errors[0].startswith(f"s3://{bucket.name}/a.jsonl, line 2")
    assert str(tmp_path) not in str(refusal.value)


def test_missing_objects_are_refused(bucket: Bucket) -> None:
    bucket.put(**{"train/a-train.jsonl": lines(1), "train/a-test.jsonl": lines(2), "docs/a.md": b"x"})
    for key, complaint in [
        ("none.jsonl", "no prompt file or folder at s3://.*none.jsonl.*check bucket and key"),
        ("train/*.csv", "no prompt file matches"),
        ("docs", "no prompt file in folder s3://.*docs; expected .jsonl"),
        ("train", r"holds several splits \(test, train\); choose one with a glob.*s3://.*/train/\*\*/test"),
    ]:
        with pytest.raises(DataError, match=complaint):
            bucket.read(key)
    options = bucket.options
    with pytest.raises(DataError, match="there is no bucket 'absent-bucket'; check its name"):
        read_prompts(PromptFile(path=f"s3://absent-bucket/folder/*.jsonl{options}"))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("s3://key:secret@bucket/a.jsonl", "must not contain credentials"),
        ("s3:///a.jsonl", "expected s3://BUCKET/KEY"),
        ("s3://bucket/a.jsonl?colour=red", r"unknown option colour after `\?`"),
        ("gs://bucket/a.jsonl?region=x", r"unknown option region after `\?`.*expected anonymous, endpoint_override"),
        ("s3://bucket/part-?.jsonl", r"in a glob, `\?` is not supported"),
    ],
)
def test_malformed_uris_are_refused(path: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as refusal:
        read_prompts(PromptFile(path=path))
    assert "secret" not in str(refusal.value)


def test_refused_access_names_the_credentials(bucket: Bucket) -> None:
    bucket.put(**{"rows.jsonl": lines(1)})
    path = f"s3://{bucket.name}/rows.jsonl{bucket.options}"
    with pytest.raises(DataError, match="access was refused: set AWS_ACCESS_KEY_ID.*anonymous=true"):
        read_prompts(PromptFile(path=f"{path}&anonymous=true"))  # the bucket is private


def test_unreachable_store_names_the_endpoint() -> None:
    path = "s3://bucket/rows.jsonl?endpoint_override=127.0.0.1:9&scheme=http&anonymous=true"
    with pytest.raises(DataError, match="could not look up .*check the network, and the endpoint"):
        read_prompts(PromptFile(path=path))


class GoogleStorage(BaseHTTPRequestHandler):
    """Reading part of Google Cloud Storage, for one bucket."""

    objects: ClassVar[dict[str, bytes]] = {"p/a.jsonl": lines(1), "p/deep/b.jsonl": lines(2), "p/readme.md": b"x"}

    def do_GET(self) -> None:
        request, place = urlsplit(self.path), "/storage/v1/b/bucket/o"
        query, name = parse_qs(request.query), unquote(request.path.removeprefix(f"{place}/"))
        if request.path == place:
            found = [self._metadata(key) for key in self.objects if key.startswith(query["prefix"][0])]
            self._answer(200, json.dumps({"kind": "storage#objects", "items": found}).encode())
        elif name in self.objects:
            is_media = query.get("alt") == ["media"]
            self._answer(200, self.objects[name] if is_media else json.dumps(self._metadata(name)).encode())
        else:
            self._answer(404, b'{"error": {"code": 404, "message": "No such object"}}')

    def _metadata(self, name: str) -> dict[str, str]:
        size = str(len(self.objects[name]))
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": size,
            "generation": "1",
            "etag": "x",
        }

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_files_folders_and_globs_of_google_storage_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_CACHE", str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleStorage)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    options = f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&anonymous=true"
    try:
        for key, answers in (("p/a.jsonl", ["1"]), ("p", ["1", "2"]), ("p/**/b.*", ["2"])):
            reading = read_prompts(PromptFile(path=f"gs://bucket/{key}{options}"))
            assert [record.answer for record in reading.records] == answers
        assert reading.files[0].path == "gs://bucket/p/deep/b.jsonl"
        with pytest.raises(DataError, match="no prompt file or folder at gs://bucket/none"):
            read_prompts(PromptFile(path=f"gs://bucket/none{options}"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
