"""Files of the registry, on a local disk, S3 or Google Cloud Storage: pyarrow reads and writes them, and one operation is added to it.

That operation is `create`: write a small file only if there is none of its name, so that of several writers one succeeds. All the registry promises to
concurrent writers rests on it (rlad/registry/conditional_create.py).

Credentials are found where the vendors' own tools find them, and are refused in an address.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from rlad.errors import RegistryError
from rlad.registry.conditional_create import Create, create_locally, gcs, s3

_CHUNK_BYTES = 8 << 20
_OPTIONS = {"s3": {"region", "scheme", "endpoint_override"}, "gs": {"scheme", "endpoint_override", "anonymous"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Size in bytes and SHA-256 (hexadecimal) of what was copied."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """A name in a directory, and when it was last written; None of a directory where the store does not say."""

    name: str
    is_file: bool
    modified_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStore:
    """A folder on some filesystem. Paths are relative to it, with forward slashes.

    Attributes:
        uri: as it was given.
        filesystem, root: where it is, in pyarrow's terms.
        create_at: `create` of this filesystem, on whole paths.
    """

    uri: str
    filesystem: fs.FileSystem
    root: str
    create_at: Create = field(repr=False)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that must not exist yet. It appears whole or not at all.

        A reply that got lost makes the sender ask again and be told that the file exists; so a file with the very same content is taken for its own.
        Content therefore has to be unlike any other writer's.

        Returns:
            Whether the file is this caller's.
        """
        with self._reached(f"create {path}"):
            return self.create_at(self._at(path), content) or self._read(path) == content

    def read(self, path: str) -> bytes | None:
        """The content of a small file; None where there is none."""
        with self._reached(f"read {path}"):
            return self._read(path)

    def entries(self, directory: str) -> list[DirectoryEntry]:
        """What is in a directory, by name; nothing where there is no such directory. Names with a leading dot are not shown: they are half-written."""
        with self._reached(f"list {directory or 'it'}"):
            found = self.filesystem.get_file_info(fs.FileSelector(self._at(directory), allow_not_found=True))
        entries = [
            DirectoryEntry(name=each.base_name, is_file=each.type == fs.FileType.File, modified_at=each.mtime)
            for each in found
        ]
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)

    def upload(self, source: Path, path: str) -> StoredFile:
        """Copy a local file here."""
        with self._reached(f"write {path}"), source.open("rb") as file:
            if (local := self.local_path(path)) is not None:
                return _copy_durably(file, local)
            with self.filesystem.open_output_stream(self._at(path)) as target:
                return _copy(file, target)

    def download(self, path: str, target: Path) -> StoredFile | None:
        """Copy a file from here to a local one; None where there is none."""
        with self._reached(f"copy {path} to {target}"):
            try:
                source = self.filesystem.open_input_stream(self._at(path))
            except FileNotFoundError:
                return None
            with source, target.open("wb") as file:
                return _copy(source, file)

    def delete_file(self, path: str) -> None:
        with self._reached(f"delete {path}"):
            self.filesystem.delete_file(self._at(path))

    def delete_directory(self, path: str) -> None:
        """Delete a directory with all that is in it; none is no error."""
        with self._reached(f"delete {path}"):
            if self.filesystem.get_file_info(self._at(path)).type != fs.FileType.NotFound:
                self.filesystem.delete_dir(self._at(path))

    def local_path(self, path: str) -> Path | None:
        """Where a path is on this machine; None where it is elsewhere."""
        return Path(self._at(path)) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _read(self, path: str) -> bytes | None:
        try:
            with self.filesystem.open_input_stream(self._at(path)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    @contextmanager
    def _reached(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(f"the registry at {self.uri}: could not {what}: {error}") from error


def open_store(uri: str) -> ModelStore:
    """The store at a local path, `s3://bucket/prefix?region=...&endpoint_override=host:port&scheme=http`, or `gs://bucket/prefix`.

    Raises:
        RegistryError: an address that names no such place, or holds credentials.
    """
    if "://" not in uri or uri.startswith("file://"):
        folder = str(Path(uri.removeprefix("file://")).expanduser().resolve())
        return ModelStore(uri=folder, filesystem=fs.LocalFileSystem(), root=folder, create_at=create_locally)
    parts = urlsplit(uri)
    if parts.scheme not in _OPTIONS:
        raise RegistryError(f"a registry is a local path, s3://bucket/prefix or gs://bucket/prefix; got {uri!r}")
    if "@" in parts.netloc:
        raise RegistryError(
            "a registry's address holds no credentials: give them as the vendor's tools take them (environment, profile, machine role)"
        )
    options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if unknown := options.keys() - _OPTIONS[parts.scheme]:
        raise RegistryError(
            f"unknown option {', '.join(sorted(unknown))} of a registry's address; {parts.scheme} takes {_listed(parts.scheme)}"
        )
    if not parts.netloc:
        raise RegistryError(f"expected {parts.scheme}://bucket/prefix, got {uri!r}: it names no bucket")
    root = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    filesystem, create_at = s3(options) if parts.scheme == "s3" else gcs(options)
    return ModelStore(uri=uri, filesystem=filesystem, root=root, create_at=create_at)


def _listed(scheme: str) -> str:
    return ", ".join(sorted(_OPTIONS[scheme]))


def _copy(source: Any, target: Any) -> StoredFile:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
    return StoredFile(bytes=size, sha256=digest.hexdigest())


def _copy_durably(source: Any, target: Path) -> StoredFile:
    """On the disk before it returns: a manifest must not outlive its files when the power fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        copied = _copy(source, file)
        file.flush()
        os.fsync(file.fileno())
    return copied
