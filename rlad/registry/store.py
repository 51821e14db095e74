"""File storage of the registry on a local disk, S3 or Google Cloud Storage.

pyarrow reads and writes the files. `ModelStore.create` adds conditional creation: of several concurrent writers to one
name, exactly one succeeds. All guarantees of the registry to concurrent writers are based on it (see
rlad/registry/conditional_create.py).

Credentials come from the same sources as in the vendors' tools (environment, profile, machine role). URIs must not
contain credentials.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from rlad.errors import RegistryError
from rlad.integrity.durable import sync_directory
from rlad.registry.conditional_create import TEMPORARY, Create, create_locally, gcs, s3

_CHUNK_BYTES = 8 << 20
_OPTIONS = {"s3": {"region", "scheme", "endpoint_override"}, "gs": {"scheme", "endpoint_override", "anonymous"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Size in bytes and SHA-256 (hexadecimal) of a copied file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """Entry of a directory. `modified_at` is None if the store does not report it (directories on object stores)."""

    name: str
    is_file: bool
    modified_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStore:
    """Directory on a filesystem. Paths are relative to it and use forward slashes.

    Attributes:
        uri: URI as given by the user.
        filesystem: pyarrow filesystem.
        root: Path of the directory on `filesystem`.
        create_at: Conditional create of this filesystem; takes full paths.
    """

    uri: str
    filesystem: fs.FileSystem
    root: str
    create_at: Create = field(repr=False)

    def create(self, path: str, content: bytes) -> bool:
        """Create a file atomically, unless it exists.

        If a reply is lost, the client retries, and the store reports that the file exists. Therefore a file with equal
        content counts as created by this call, and `content` must be unique to the writer.

        Returns:
            Whether this call created the file.
        """
        with self._with_context(f"create {path}"):
            return self.create_at(self._at(path), content) or self._read(path) == content

    def read(self, path: str) -> bytes | None:
        """Return the content of a small file, or None if it does not exist."""
        with self._with_context(f"read {path}"):
            return self._read(path)

    def entries(self, directory: str) -> list[DirectoryEntry]:
        """Return the entries of a directory by name. The list is empty if the directory does not exist.

        Names with a leading dot are left out, because they are temporary files.
        """
        with self._with_context(f"list {directory or 'the registry'}"):
            found = self.filesystem.get_file_info(fs.FileSelector(self._at(directory), allow_not_found=True))
        entries = [
            DirectoryEntry(name=info.base_name, is_file=info.type == fs.FileType.File, modified_at=info.mtime)
            for info in found
        ]
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)

    def upload(self, source: Path, path: str) -> StoredFile:
        """Copy a local file into the store."""
        with self._with_context(f"write {path}"), source.open("rb") as file:
            if (local := self.local_path(path)) is not None:
                return _copy_durably(file, local)
            with self.filesystem.open_output_stream(self._at(path)) as target:
                return _copy(file, target)

    def download(self, path: str, target: Path) -> StoredFile | None:
        """Copy a file from the store to a local path. Returns None if it does not exist."""
        with self._with_context(f"copy {path} to {target}"):
            try:
                source = self.filesystem.open_input_stream(self._at(path))
            except FileNotFoundError:
                return None
            with source, target.open("wb") as file:
                return _copy(source, file)

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        with self._with_context(f"delete {path}"):
            self.filesystem.delete_file(self._at(path))

    def delete_directory(self, path: str) -> None:
        """Delete a directory with its contents. Does nothing if it does not exist."""
        with self._with_context(f"delete {path}"):
            if self.filesystem.get_file_info(self._at(path)).type != fs.FileType.NotFound:
                self.filesystem.delete_dir(self._at(path))

    def delete_temporary(self, directory: str, *, before: datetime) -> None:
        """Delete temporary files that killed writers left in a directory of a local disk before a time."""
        if (local := self.local_path(directory)) is None or not local.is_dir():
            return
        with self._with_context(f"sweep {directory or 'the registry'}"):
            for path in local.glob(f"{TEMPORARY}*"):
                try:
                    if datetime.fromtimestamp(path.lstat().st_mtime, UTC) < before:
                        path.unlink()
                except FileNotFoundError:  # its writer or another sweep was faster
                    continue

    def local_path(self, path: str) -> Path | None:
        """Return the local path of a file or directory, or None if the store is not on a local disk."""
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
    def _with_context(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(f"registry at {self.uri}: could not {action}: {error}") from error


def open_store(uri: str) -> ModelStore:
    """Open the store at a URI.

    Args:
        uri: A local path, `s3://bucket/prefix?region=...&endpoint_override=host:port&scheme=http`, or
            `gs://bucket/prefix?endpoint_override=host:port&scheme=http&anonymous=true`. Options are optional.

    Raises:
        RegistryError: The URI is not supported, or contains credentials.
    """
    if "://" not in uri or uri.startswith("file://"):
        folder = str(Path(uri.removeprefix("file://")).expanduser().resolve())
        return ModelStore(uri=folder, filesystem=fs.LocalFileSystem(), root=folder, create_at=create_locally)
    parts = urlsplit(uri)
    if parts.scheme not in _OPTIONS:
        raise RegistryError(f"expected a local path, s3://bucket/prefix or gs://bucket/prefix as registry; got {uri!r}")
    if "@" in parts.netloc:
        raise RegistryError(
            "a registry URI must not contain credentials: provide them through the environment, a profile or the "
            "machine's role, as for the vendor's tools"
        )
    options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if unknown := options.keys() - _OPTIONS[parts.scheme]:
        raise RegistryError(
            f"unknown option {', '.join(sorted(unknown))} in a registry URI; {parts.scheme} supports "
            f"{', '.join(sorted(_OPTIONS[parts.scheme]))}"
        )
    if not parts.netloc:
        raise RegistryError(f"expected {parts.scheme}://bucket/prefix as registry; got {uri!r}, which has no bucket")
    root = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    filesystem, create_at = s3(options) if parts.scheme == "s3" else gcs(options)
    return ModelStore(uri=uri, filesystem=filesystem, root=root, create_at=create_at)


def _copy(source: Any, target: Any) -> StoredFile:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
    return StoredFile(bytes=size, sha256=digest.hexdigest())


def _copy_durably(source: Any, target: Path) -> StoredFile:
    """Copy and fsync, so that after a power failure no manifest exists without its files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        copied = _copy(source, file)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(target.parent)
    sync_directory(target.parent.parent)
    return copied
