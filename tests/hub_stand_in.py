"""Stand-in for the Hugging Face Hub on loopback: model and data-set repositories, served as `huggingface_hub` asks.

    with HubStandIn() as hub:
        commit = hub.add_model("team/tiny", {"config.json": b"{}", "model.safetensors": weights})
        hub.add_dataset("team/prompts", {"data/train.parquet": rows})
        subprocess.run(command, env=os.environ | hub.environment(tmp_path / "hf"))

A commit is immutable; each call for a repository adds one and moves its branch. `huggingface_hub` reads its variables
at import, so code under test runs in a child process with `environment()`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests import hub_uploads

Kind = Literal["model", "dataset"]
_API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<what>refs|(?:revision|tree|paths-info)(?=/))(?:/(?P<revision>[^/]+)(?:/(?P<folder>.+))?)?)?"
)
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_LFS = (".safetensors", ".parquet", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that the stand-in received.

    Attributes:
        method: HTTP method.
        path: Path without the query.
        range: The `Range` header, or None.
        token: The bearer token, or None.
    """

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass(slots=True, kw_only=True)
class Repository:
    """A repository.

    Attributes:
        token: Token that may read it; None: everyone may.
        gated: Whether a reader without the right token learns that the repository exists, as with gated models.
        branches: Commit of each branch or tag.
        tags: Commit of each tag that a client made.
        commits: Files of each commit.
    """

    token: str | None = None
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)


class HubStandIn:
    """A hub with its own server thread on loopback.

    Attributes:
        requests: All requests so far.
        repositories: Repositories by kind and id.
        objects: Uploaded files by SHA-256.
        visibility: `private` or `public`, of repositories that a client made.
        writer: Token that may write.
        breaks: Remaining bytes after which the next download of a file (by name) is cut off, one use each.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.visibility: dict[str, str] = {}
        self.writer = "writer"
        self.breaks: dict[str, list[int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubStandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Value of `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """Return the variables of a process that uses this hub, with its cache in `home`."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        return variables if token is None else variables | {"HF_TOKEN": token}

    def add_model(self, name: str, files: Mapping[str, bytes] | Path, **settings: Any) -> str:
        """Commit the files of a model, given with their content or as a directory. See `add`."""
        return self.add("model", name, files, **settings)

    def add_dataset(self, name: str, files: Mapping[str, bytes] | Path, **settings: Any) -> str:
        """Commit the files of a data set, given with their content or as a directory. See `add`."""
        return self.add("dataset", name, files, **settings)

    def add(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes] | Path,
        *,
        branch: str = "main",
        token: str | None = None,
        gated: bool = False,
    ) -> str:
        """Commit files to a branch of a repository, which is made if it does not exist.

        Args:
            kind: Kind of the repository.
            name: Its id, `OWNER/NAME`.
            files: Content of each file, or a directory.
            branch: Branch or tag to move.
            token: Token that may read the repository; None: everyone may.
            gated: Whether a reader without the token learns that the repository exists.

        Returns:
            The commit, 40 hexadecimal digits.
        """
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.token, repository.gated = token, gated
        content = "".join(f"{path}:{hashlib.sha256(data).hexdigest()}\n" for path, data in sorted(files.items()))
        commit = hashlib.sha1(f"{kind} {name} {content}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def break_download(self, file_name: str, *, after_bytes: int, times: int = 1) -> None:
        """Cut the connection of the next `times` downloads of a file after some bytes of the answer."""
        self.breaks[file_name] = [after_bytes] * times

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was requested, in order, without repetitions."""
        paths = [request.path for request in self.requests if request.method == "GET" and "/resolve/" in request.path]
        return list(dict.fromkeys(path.partition("/resolve/")[2].partition("/")[2] for path in paths))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubStandIn:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ") or None
        self.hub.requests.append(Request(method=self.command, path=path, range=self.headers.get("Range"), token=token))
        if hub_uploads.is_upload(self.command, path):
            # The store of large files knows its clients by the address that it gave them.
            if token != self.hub.writer and not path.startswith("/lfs/"):
                self._refuse(401 if token is None else 403, "")
                return
            status, value = hub_uploads.answer(self.hub, path, body)
            self._send_json(value, status)
            return
        # Branch names may contain slashes, which clients quote: the quoted path is matched.
        quoted = urlsplit(self.path).path
        if match := _API.fullmatch(quoted):
            kind, name = match["kind"], unquote(match["repo"])
        elif match := _RESOLVE.fullmatch(quoted):
            kind, name = "dataset" if match["kind"] else "model", unquote(match["repo"])
        else:
            self._refuse(404, "NotFound")
            return
        repository = self.hub.repositories.get((kind, name))  # type: ignore[arg-type]
        if repository is None:
            # The hub does not tell a stranger whether a private repository exists.
            self._refuse(401 if token is None else 404, "RepoNotFound")
            return
        is_content = "path" in match.groupdict()
        if repository.token not in (None, token):
            if not repository.gated:
                self._refuse(401 if token is None else 404, "RepoNotFound")
                return
            if is_content:  # of a gated repository, everyone may see the list of files
                self._refuse(401 if token is None else 403, "GatedRepo")
                return
        if not is_content and match["what"] == "refs":
            self._send_json(_refs(repository))
            return
        revision = unquote(match["revision"] or "main")
        commit = repository.branches.get(revision) or repository.tags.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return
        files = repository.commits[commit]
        if is_content:
            self._send_file(files, unquote(match["path"]), commit)
        elif match["what"] == "tree":
            query = parse_qs(urlsplit(self.path).query)
            is_recursive = query.get("recursive", ["False"])[0].lower() == "true"
            self._send_json(_tree(files, unquote(match["folder"] or ""), recursive=is_recursive))
        elif match["what"] == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._send_json([entries[path] for path in wanted if path in entries])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            owner = name.partition("/")[0]
            gated: str | bool = "manual" if repository.gated else False
            self._send_json(
                {"_id": commit[:24], "id": name, "author": owner, "sha": commit, "siblings": siblings, "tags": []}
                | {
                    "private": self.hub.visibility.get(name) == "private",
                    "gated": gated,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                }
            )

    def _send_file(self, files: Mapping[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        data = files[path]
        start = 0
        if range_header := self.headers.get("Range"):
            first, _, last = range_header.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}")
            part = data[start:end]
        else:
            self.send_response(200)
            part = data
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(path, data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = self.hub.breaks.get(Path(path).name)
        if breaks:
            self.wfile.write(part[: breaks.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(part)

    def _send_json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _refs(repository: Repository) -> dict[str, Any]:
    kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
    found = {
        kind: [{"name": name, "ref": f"refs/{ref}/{name}", "targetCommit": commit} for name, commit in commits.items()]
        for kind, (ref, commits) in kinds.items()
    }
    return {**found, "converts": [], "pullRequests": []}


def _tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder as the hub lists them: files, and the folders between."""
    prefix = f"{folder}/" if folder else ""
    folders: set[str] = set()
    entries: list[dict[str, Any]] = []
    for path, data in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parents = [str(parent) for parent in Path(path.removeprefix(prefix)).parents][:-1]
        folders.update(prefix + parent for parent in (parents if recursive else parents[-1:]))
        if not recursive and parents:
            continue
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
        if path.endswith(_LFS):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return [*({"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)), *entries]


def _etag(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(_LFS) else _blob_id(data)


def _blob_id(data: bytes) -> str:
    """Return git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
