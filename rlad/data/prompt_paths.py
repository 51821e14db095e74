"""Paths of prompt sources: one file, a folder of shards, or a glob, on a disk or an object store."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rlad.data.row_files import is_data_name
from rlad.data.sources.object_store import fetch_files, is_object_uri
from rlad.errors import DataError

_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-]|$)")
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """File of a prompt source.

    Attributes:
        path: Local path.
        name: Path or URI as in messages.
        sha256: SHA-256 of a fetched file, hexadecimal; None for local files.
    """

    path: Path
    name: str
    sha256: str | None = None


def source_files(path: str | Path) -> list[SourceFile]:
    """Return the files of a prompt source in the order of their names. Files on object stores are fetched.

    Args:
        path: A file; a folder, which is searched recursively for files with known endings; or a glob.

    Raises:
        DataError: No file is found, a folder holds several splits, or an object store refuses or cannot be reached.
    """
    if is_object_uri(path):
        where = str(path).partition("?")[0].rstrip("/")
        fetched = fetch_files(str(path), lambda names: _data_files(names, where))
        return [SourceFile(path=file.path, name=file.uri, sha256=file.sha256) for file in fetched]
    return [SourceFile(path=file, name=str(file)) for file in _local_files(path)]


def _local_files(path: str | Path) -> list[Path]:
    where = Path(path).expanduser()
    if where.is_file():
        return [where]
    if where.is_dir():
        names = [name.relative_to(where).as_posix() for name in sorted(where.rglob("*")) if name.is_file()]
        return [where / name for name in _data_files(names, str(where))]
    if glob.has_magic(str(where)):
        # Path.glob does not accept absolute patterns.
        matches = sorted(map(Path, glob.glob(str(where), recursive=True)))  # noqa: PTH207
        if files := [match for match in matches if match.is_file() and match.name not in _NOT_ROWS]:
            return files
        raise DataError(f"no prompt file matches {path}; check the pattern of the prompt source")
    raise DataError(f"no prompt file at {path}; check the path of the prompt source")


def _data_files(names: Sequence[str], folder: str) -> list[str]:
    """Return the prompt files in a folder, of all files in it by their relative paths."""
    paths = [PurePosixPath(name) for name in names]
    visible = [path for path in paths if not any(part.startswith((".", "_")) for part in path.parts)]
    found = [path for path in visible if is_data_name(path) and path.name not in _NOT_ROWS]
    if not found:
        raise DataError(f"no prompt file in folder {folder}; expected .jsonl, .json, .csv, .parquet or .arrow files")
    splits = sorted({match[1] for path in found for match in _SPLIT.finditer(path.as_posix().lower())})
    if len(splits) > 1:
        raise DataError(
            f"folder {folder} holds several splits ({', '.join(splits)}); choose one with a glob, for example "
            f"path={folder}/**/{splits[0]}*"
        )
    return [path.as_posix() for path in found]
