"""Models in folders of object stores, by pyarrow's file systems, with a cache on every node.

A folder has no commit. Its digest covers name, size and time of change of every file of the model, so a file that is
written again changes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from platformdirs import user_cache_path
from pyarrow import fs

from rlad.errors import ModelUnreachableError, PlanError
from rlad.models.files import OnBytes, is_wanted, missing_files, require_files
from rlad.models.locks import locked
from rlad.models.references import ModelReference

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 8 << 20
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 10.0, 60.0
_OPTIONS = {"s3": {"region", "scheme", "endpoint_override"}, "gs": {"scheme", "endpoint_override", "anonymous"}}


def models_folder() -> Path:
    """Return the directory `models` in the cache of this node: `$RLAD_CACHE`, else the user's cache directory."""
    configured = os.environ.get("RLAD_CACHE")
    cache = Path(configured).expanduser() if configured else user_cache_path("rlad", appauthor=False)
    return cache.absolute() / "models"


def digest_of(reference: ModelReference) -> str:
    """Return the digest of the model files in a folder, 16 hexadecimal digits.

    Raises:
        PlanError: The folder holds no model.
        ModelUnreachableError: The store does not answer, or refuses access.
    """
    return _digest(_listing(reference, *_open(reference)))


def fetch_folder(reference: ModelReference, *, weights: bool, on_bytes: OnBytes | None = None) -> Path:
    """Return a local directory with the files of a folder, after copying those that the cache lacks.

    Args:
        reference: The folder with its digest.
        weights: Whether weights are needed besides configuration and tokenizer.
        on_bytes: Progress of the copy.

    Raises:
        PlanError: The folder has changed since its digest was taken, or it is no model with safetensors weights.
        ModelUnreachableError: The store does not answer, or refuses access.
    """
    slug = reference.name.partition("?")[0].replace("://", "-").replace("/", "-")
    name = f"{slug[:80]}-{reference.revision}"
    directory = models_folder() / name
    if not missing_files(directory, weights=weights):
        return directory
    with locked(models_folder(), f".{name}"):
        if missing_files(directory, weights=weights):
            _copy_files(reference, directory, weights=weights, on_bytes=on_bytes)
    return require_files(directory, reference.text, weights=weights)


def _copy_files(reference: ModelReference, directory: Path, *, weights: bool, on_bytes: OnBytes | None) -> None:
    filesystem, root = _open(reference)
    listing = _listing(reference, filesystem, root)
    if (digest := _digest(listing)) != reference.revision:
        raise PlanError(
            f"the files of {reference.name} have changed: expected digest {reference.revision}; got {digest}. Start "
            "another run for the new files, and write models into new folders instead of replacing them"
        )
    # The index comes last: with it, a directory whose copy was interrupted does not count as complete.
    wanted = [info for info in listing if is_wanted(info.base_name, weights=weights)]
    wanted.sort(key=lambda info: info.base_name.endswith((".index.json", "config.json")))
    total, done = sum(info.size for info in wanted), 0
    _LOG.info("model copy started: folder=%s digest=%s bytes=%d", reference.name, digest, total)
    directory.mkdir(parents=True, exist_ok=True)
    for info in wanted:
        target = directory / info.base_name
        if target.is_file() and target.stat().st_size == info.size:
            done += info.size
            continue
        partial = directory / f".partial-{uuid.uuid4().hex}"
        try:
            with filesystem.open_input_stream(info.path) as source, partial.open("wb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    if on_bytes is not None:
                        on_bytes(done, total)
            partial.replace(target)
        except OSError as error:
            raise _unreachable(reference, error) from error
        finally:
            partial.unlink(missing_ok=True)


def _listing(reference: ModelReference, filesystem: Any, root: str) -> list[Any]:
    """Return the model files of a folder, sorted by name."""
    try:
        found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except OSError as error:
        raise _unreachable(reference, error) from error
    files = [info for info in found if info.type == fs.FileType.File and is_wanted(info.base_name, weights=True)]
    if "config.json" not in {info.base_name for info in files}:
        raise PlanError(f"no model in {reference.name}: expected a folder with config.json and safetensors files")
    return sorted(files, key=lambda info: info.base_name)


def _digest(listing: list[Any]) -> str:
    text = "".join(f"{info.base_name}:{info.size}:{info.mtime_ns}\n" for info in listing)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open(reference: ModelReference) -> tuple[Any, str]:
    """Return the file system of a folder, and the folder's path on it."""
    parts = urlsplit(reference.name)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if unknown := options.keys() - _OPTIONS[parts.scheme]:
        raise PlanError(
            f"unknown option {min(unknown)!r} of {reference.name}; {parts.scheme} supports "
            f"{', '.join(sorted(_OPTIONS[parts.scheme]))}"
        )
    root = f"{parts.netloc}/{parts.path.strip('/')}"
    try:
        if parts.scheme == "s3":
            timeouts = {"connect_timeout": _CONNECT_TIMEOUT_S, "request_timeout": _REQUEST_TIMEOUT_S}
            return fs.S3FileSystem(**options, **timeouts), root
        anonymous = options.pop("anonymous", "false") == "true"
        return fs.GcsFileSystem(anonymous=anonymous, **options), root
    except OSError as error:
        raise _unreachable(reference, error) from error


def _unreachable(reference: ModelReference, error: OSError) -> ModelUnreachableError:
    return ModelUnreachableError(
        f"cannot read {reference.name}: {error}. Credentials and region come from the environment, a profile or the "
        "machine's role, as for the vendor's tools"
    )
