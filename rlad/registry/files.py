"""Upload and download of model files, with checksums. Pickle files are rejected, because loading them runs code."""

from __future__ import annotations

import errno
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rlad.errors import CorruptModelError, RegistryError
from rlad.integrity.durable import sync_directory, sync_file
from rlad.registry.store import ModelStore, StoredFile
from rlad.registry.versions import ModelFile, ModelVersion

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_PARALLEL = 8
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Apply a function to items in parallel threads and return the results in order.

    Object stores have a high latency, but handle many requests at once.
    """
    with ThreadPoolExecutor(_PARALLEL) as threads:
        return list(threads.map(function, items))


def upload_model(store: ModelStore, model_dir: Path, directory: str) -> tuple[ModelFile, ...]:
    """Copy a model's files into a directory of the store.

    Raises:
        RegistryError: The directory contains no safetensors model, or it contains pickle files.
    """
    names = _files_of(model_dir)
    stored = in_parallel(lambda name: store.upload(model_dir / name, f"{directory}/{name}"), names)
    return tuple(
        ModelFile(path=name, bytes=file.bytes, sha256=file.sha256) for name, file in zip(names, stored, strict=True)
    )


def fetch_model(store: ModelStore, version: ModelVersion, into: Path) -> Path:
    """Return a local directory with verified files of a version, downloading it if necessary.

    The directory is created inside `into`, atomically even with concurrent fetches. An intact earlier copy is reused.

    Raises:
        CorruptModelError: A file in the store differs from its manifest.
    """
    target = into / f"{version.name}-{version.version}-{_digest(version.files)[:8]}"
    if is_intact(target, version.files):
        return target
    into.mkdir(parents=True, exist_ok=True)
    partial = into / f".partial-{uuid.uuid4().hex}"
    try:
        for file in version.files:
            (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
        in_parallel(lambda file: _download(store, version, file, partial / file.path), version.files)
        for file in version.files:
            sync_file(partial / file.path)
        _move_into_place(partial, target, version)
        sync_directory(into)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def is_intact(directory: Path, files: Sequence[ModelFile]) -> bool:
    """Return whether a directory contains these files, by size and checksum. Reads all files."""
    if any(not (path := directory / file.path).is_file() or path.stat().st_size != file.bytes for file in files):
        return False
    return all(in_parallel(lambda file: _sha256(directory / file.path) == file.sha256, files))


def require_intact(directory: Path, version: ModelVersion, uri: str) -> None:
    """Verify the files of a version in a local registry. Reads all files.

    Raises:
        CorruptModelError: A file is missing or differs from the manifest.
    """

    def check(file: ModelFile) -> str | None:
        path = directory / file.path
        if path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256:
            return None
        return file.path

    if damaged := next(filter(None, in_parallel(check, version.files)), None):
        raise CorruptModelError(
            f"{damaged} of {version.reference} in {uri} is missing or does not match its manifest "
            f"({directory / damaged}). Restore the file from a backup, or roll back to another version"
        )


def _files_of(model_dir: Path) -> list[str]:
    if not model_dir.is_dir():
        raise RegistryError(f"model directory {model_dir} does not exist")
    names = sorted(path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file())
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise RegistryError(
            f"{model_dir} is not a model directory: expected config.json and *.safetensors files, as in the export/ "
            "of a run"
        )
    if pickles := [name for name in names if Path(name).suffix in _PICKLES]:
        raise RegistryError(
            f"{model_dir} contains pickle files, which the registry does not accept: {', '.join(pickles)}. Remove "
            "them, or convert them to safetensors"
        )
    return names


def _download(store: ModelStore, version: ModelVersion, file: ModelFile, target: Path) -> None:
    found = store.download(f"{version.directory}/{file.path}", target)
    if found is None:
        raise CorruptModelError(
            f"{version.reference} in {store.uri} lacks {file.path}, which its manifest lists. The version may have "
            "been retired in the meantime"
        )
    if found != StoredFile(bytes=file.bytes, sha256=file.sha256):
        raise CorruptModelError(
            f"{file.path} of {version.reference} in {store.uri} does not match its manifest: expected {file.bytes} "
            f"bytes with SHA-256 {file.sha256}; got {found.bytes} bytes with {found.sha256}. Fetch it again; if the "
            "error persists, roll back to another version"
        )


def _move_into_place(partial: Path, target: Path, version: ModelVersion) -> None:
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if is_intact(target, version.files):  # a concurrent fetch was faster
            return
        damaged = target.with_name(f".partial-damaged-{uuid.uuid4().hex}")
        target.rename(damaged)
        shutil.rmtree(damaged)
        partial.rename(target)


def _digest(files: Sequence[ModelFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}:{file.sha256}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
