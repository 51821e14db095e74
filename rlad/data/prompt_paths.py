"""Paths of prompt sources: one file, a folder of shards, or a glob."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from rlad.data.row_files import is_data_name
from rlad.errors import DataError

_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-]|$)")
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}


def prompt_paths(path: str | Path) -> list[Path]:
    """Return the files of a prompt source in the order of their names.

    Args:
        path: A file; a folder, which is searched recursively for files with known endings; or a glob.

    Raises:
        DataError: No file is found, or a folder holds several splits.
    """
    where = Path(path).expanduser()
    if where.is_file():
        return [where]
    if where.is_dir():
        return _files_in(where)
    if glob.has_magic(str(where)):
        # Path.glob does not accept absolute patterns.
        matches = sorted(map(Path, glob.glob(str(where), recursive=True)))  # noqa: PTH207
        if files := [match for match in matches if match.is_file() and match.name not in _NOT_ROWS]:
            return files
        raise DataError(f"no prompt file matches {path}; check the pattern of the prompt source")
    raise DataError(f"no prompt file at {path}; check the path of the prompt source")


def _files_in(folder: Path) -> list[Path]:
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [name for name in names if not any(part.startswith((".", "_")) for part in name.parts)]
    found = [name for name in visible if is_data_name(name) and name.name not in _NOT_ROWS]
    if not found:
        raise DataError(f"no prompt file in folder {folder}; expected .jsonl, .json, .csv, .parquet or .arrow files")
    splits = sorted({match[1] for name in found for match in _SPLIT.finditer(name.as_posix().lower())})
    if len(splits) > 1:
        raise DataError(
            f"folder {folder} holds several splits ({', '.join(splits)}); choose one with a glob, for example "
            f"path={folder}/**/{splits[0]}*"
        )
    return [folder / name for name in found]
