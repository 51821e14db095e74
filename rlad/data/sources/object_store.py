"""Prompt files on S3 and Google Cloud Storage: found by key, folder or glob, and fetched once into the cache.

pyarrow reads the files. Credentials come from the same sources as in the vendors' tools (environment, profile, machine
role). URIs must not contain credentials.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rlad.errors import DataError

_LOG = logging.getLogger(__name__)
_SCHEMES = ("s3", "gs")
_OPTIONS = {
    "s3": {"region", "scheme", "endpoint_override", "anonymous"},
    "gs": {"scheme", "endpoint_override", "anonymous"},
}
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 10.0, 60.0
_CHUNK_BYTES = 4 << 20
_RECORD = "fetched.json"
_SHOWN_CHARACTERS = 240
_REFUSED = re.compile(
    r"ACCESS_DENIED|FORBIDDEN|PERMISSION_DENIED|UNAUTHENTICATED|CREDENTIALS|SIGNATURE|INVALID_ACCESS_KEY|ACCESS TOKEN"
    r"|\b40[13]\b"
)
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use the machine's role; add "
    "`?anonymous=true` to the path of a public bucket",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS; add `?anonymous=true` "
    "to the path of a public bucket",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """Local copy of a file.

    Attributes:
        path: Path of the copy.
        uri: URI of the file.
        sha256: SHA-256 of its content, hexadecimal.
    """

    path: Path
    uri: str
    sha256: str


def is_object_uri(path: str | Path) -> bool:
    """Return True if a path is the URI of an object store."""
    return str(path).partition("://")[0] in _SCHEMES and "://" in str(path)


def fetch_files(uri: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> list[FetchedFile]:
    """Fetch the files at a URI into the cache. A file that is there already is not fetched again.

    Args:
        uri: A file, a folder, or a glob with `*`, `**` and `[...]`, such as `s3://bucket/prompts/*.jsonl`. Options
            follow a question mark: `region` (S3), `endpoint_override` (host:port), `scheme`, `anonymous`.
        choose: Returns the files to fetch of those in a folder, by their paths relative to it.

    Raises:
        DataError: There is no such file, the store refuses or cannot be reached, or the URI is not supported.
    """
    store = _Store(uri)
    if glob.has_magic(store.key):
        parts = store.key.split("/")
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        folder = "/".join(parts[:fixed])
        keys = [name for name in store.files_in(folder) if _matches(name.split("/"), parts[fixed:])]
        if not keys:
            raise DataError(f"no prompt file matches {uri}; check the pattern of the prompt source")
        found = [f"{folder}/{name}".lstrip("/") for name in keys]
    elif store.is_file():
        found = [store.key]
    else:
        names = store.files_in(store.key)
        if not names:
            raise DataError(f"no prompt file or folder at {uri}; check bucket and key of the prompt source")
        found = [f"{store.key}/{name}".lstrip("/") for name in choose(names)]
    return [store.fetch(key) for key in found]


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return True if a path matches a glob. `**` matches any number of folders, and `*` no hidden names."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    if not parts or (parts[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


class _Store:
    """Bucket that a URI names, and the key in it.

    Args:
        uri: URI of a file, folder or glob.

    Raises:
        DataError: The URI has no bucket, contains credentials, or has unknown options.
    """

    def __init__(self, uri: str) -> None:
        self.scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")
        self.bucket, _, key = place.partition("/")
        self.key = key.strip("/")
        self._query = f"?{query}" if query else ""
        if "@" in self.bucket or ":" in self.bucket:
            raise DataError(
                f"the path of a prompt source must not contain credentials; got {self.scheme}://...@...: "
                f"{_CREDENTIALS[self.scheme]}"
            )
        if not self.bucket:
            raise DataError(f"expected {self.scheme}://BUCKET/KEY as path of a prompt source; got {uri!r}")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := options.keys() - _OPTIONS[self.scheme] or (query and not options and {query}):
            raise DataError(
                f"unknown option {', '.join(sorted(unknown))} after `?` in {uri!r}; expected "
                f"{', '.join(sorted(_OPTIONS[self.scheme]))} (in a glob, `?` is not supported)"
            )
        with self._with_context(f"open {self.bucket}"):
            self._filesystem = _filesystem(self.scheme, options)
        self._endpoint = options.get("endpoint_override", "")

    def is_file(self) -> bool:
        """Return whether the key is that of a file."""
        from pyarrow import fs

        if not self.key:
            return False
        with self._with_context(f"look up {self.uri(self.key)}"):
            return bool(self._filesystem.get_file_info(f"{self.bucket}/{self.key}").type == fs.FileType.File)

    def files_in(self, folder: str) -> list[str]:
        """Return the files in a folder and its subfolders, by their paths relative to it, in order."""
        from pyarrow import fs

        root = f"{self.bucket}/{folder}".rstrip("/")
        with self._with_context(f"list {self.uri(folder)}"):
            try:
                found = self._filesystem.get_file_info(fs.FileSelector(root, recursive=True))
            except OSError as error:
                if isinstance(error, FileNotFoundError) or "No such file or directory" in str(error):
                    return []
                raise
        return sorted(info.path.removeprefix(f"{root}/") for info in found if info.type == fs.FileType.File)

    def fetch(self, key: str) -> FetchedFile:
        """Copy a file into the cache, unless this version of it is there."""
        uri, path = self.uri(key), f"{self.bucket}/{key}"
        with self._with_context(f"read {uri}"):
            info = self._filesystem.get_file_info(path)
            with self._filesystem.open_input_stream(path) as source:
                stored = source.metadata() or {}
                version = next((str(stored[name]) for name in ("ETag", "etag", "generation") if name in stored), None)
                state = [self.scheme, self._endpoint, path, info.size, version or info.mtime_ns]
                folder = _cache_folder() / hashlib.blake2b(json.dumps(state).encode(), digest_size=12).hexdigest()
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".lock"):
                    return _fetched(folder, uri) or _copied(source, folder, uri, info.size)

    def uri(self, key: str) -> str:
        """Return the URI of a key, without options."""
        return f"{self.scheme}://{self.bucket}/{key}"

    @contextmanager
    def _with_context(self, action: str) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"could not {action}: there is no such file; check bucket and key") from error
        except (OSError, ArrowException) as error:
            text = str(error).upper()
            if _REFUSED.search(text):
                remedy = f"access was refused: {_CREDENTIALS[self.scheme]}"
            elif "NO_SUCH_BUCKET" in text or "NOT_FOUND" in text or "BUCKET DOES NOT EXIST" in text:
                remedy = f"there is no bucket {self.bucket!r}; check its name and the region"
            else:
                remedy = (
                    "check the network, and the endpoint (`?endpoint_override=HOST:PORT&scheme=http` after the path, "
                    "or AWS_ENDPOINT_URL for S3)"
                )
            raise DataError(f"could not {action}: {remedy} ({_first_line(error)})") from error


def _filesystem(scheme: str, options: dict[str, str]) -> Any:
    from pyarrow import fs  # Imported here because the import takes 0.3 s that local files do not need.

    is_anonymous = options.get("anonymous") == "true"
    others = {name: value for name, value in options.items() if name != "anonymous"}
    if scheme == "s3":
        return fs.S3FileSystem(
            **others, anonymous=is_anonymous, connect_timeout=_CONNECT_TIMEOUT_S, request_timeout=_REQUEST_TIMEOUT_S
        )
    return fs.GcsFileSystem(**others, anonymous=is_anonymous, retry_time_limit=timedelta(seconds=_CONNECT_TIMEOUT_S))


def _cache_folder() -> Path:
    configured = os.environ.get("RLAD_CACHE")
    folder = Path(configured) if configured else user_cache_path("rlad", appauthor=False)
    return folder.expanduser().absolute() / "prompts"


def _fetched(folder: Path, uri: str) -> FetchedFile | None:
    """Return the file that was fetched into a folder before; None without a complete one."""
    name = uri.rpartition("/")[2]
    try:
        record = json.loads((folder / _RECORD).read_text())
        is_complete = (folder / name).stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return FetchedFile(path=folder / name, uri=uri, sha256=record["sha256"]) if is_complete else None


def _copied(source: Any, folder: Path, uri: str, size: int) -> FetchedFile:
    name, started, digest, done = uri.rpartition("/")[2], time.monotonic(), hashlib.sha256(), 0
    temporary = folder / f".{name}.part"
    console = Console(stderr=True)
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        temporary.open("wb") as target,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(name, total=size)
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)
    if done != size:
        raise OSError(f"got {done} of {size} bytes")
    temporary.replace(folder / name)
    (folder / _RECORD).write_text(json.dumps({"uri": uri, "bytes": size, "sha256": digest.hexdigest()}) + "\n")
    _LOG.info("prompt file fetched: uri=%s bytes=%d elapsed_s=%.1f", uri, size, time.monotonic() - started)
    return FetchedFile(path=folder / name, uri=uri, sha256=digest.hexdigest())


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
