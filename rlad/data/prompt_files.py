"""Prompt files: JSONL or parquet with the columns `id, prompt, task, answer, metadata`.

The parquet files of the K&K set are read in their own layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlad.data.knights_knaves.prompts import Form, is_knights_knaves_set, record_of_set_row
from rlad.data.records import PromptRecord
from rlad.errors import DataError

_REQUIRED = ("id", "prompt", "task", "answer")
_COLUMNS = (*_REQUIRED, "metadata")

Row = tuple[str, Any]
"""Location of a row, for error messages, and its columns."""


def read_prompt_file(path: str | Path, *, limit: int | None = None, form: Form = "sentences") -> list[PromptRecord]:
    """Read the prompts of a .jsonl or .parquet file.

    `id` is text or an integer. `prompt` is text, or a list of `{role, content}`. `task` and `answer` are text.
    `metadata` is an optional mapping. A parquet file in the layout of the K&K set is read as by
    `read_knights_knaves_set`.

    Args:
        path: Path of the file.
        limit: Maximum number of rows; None reads all.
        form: Form of the prompts of a K&K set; ignored for other files.

    Raises:
        DataError: The file is missing or has no rows, a row is invalid (the message names its line), or two ids are
            equal.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no prompt file at {path}; check the path of the prompt source")
    if path.suffix == ".jsonl":
        return _collect(path, _jsonl_rows(path), _record, limit)
    if path.suffix == ".parquet":
        columns, rows = _parquet_rows(path)
        return _collect(
            path, rows, partial(record_of_set_row, form=form) if is_knights_knaves_set(columns) else _record, limit
        )
    raise DataError(f"a prompt file must be .jsonl or .parquet, got {path}")


def read_knights_knaves_set(path: str | Path, form: Form) -> list[PromptRecord]:
    """Read a parquet file of the K&K set (columns `quiz`, `names`, `statements`, `solution`) as prompts in either form.

    Raises:
        DataError: The file has other columns, or a puzzle's solution is not unique or differs from the file's.
    """
    path = Path(path)
    columns, rows = _parquet_rows(path)
    if not is_knights_knaves_set(columns):
        raise DataError(
            f"{path}: expected the columns of the K&K set (quiz, names, statements, solution), got {', '.join(columns)}"
        )
    return _collect(path, rows, partial(record_of_set_row, form=form), None)


def write_prompt_file(records: Sequence[PromptRecord], path: str | Path) -> None:
    """Write records as a JSONL file that `read_prompt_file` reads back."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            row = {name: getattr(record, name) for name in _COLUMNS}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:  # bad JSON, or bytes that are not UTF-8
                raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error


def _parquet_rows(path: Path) -> tuple[list[str], Iterable[Row]]:
    """Return the column names and the rows of a parquet file."""
    import pyarrow.parquet  # Imported here because the import takes 0.3 s that JSONL files do not need.

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
    return table.column_names, ((f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def _collect(
    path: Path, rows: Iterable[Row], convert: Callable[[Any], PromptRecord], limit: int | None
) -> list[PromptRecord]:
    """Convert rows to records with distinct ids, and add the row's location to errors."""
    records: dict[str, PromptRecord] = {}
    for location, row in islice(rows, limit):
        try:
            record = convert(row)
        except DataError as error:
            raise DataError(f"{location}: {error}") from error
        if record.id in records:
            raise DataError(f"{location}: id {record.id!r} was used before; ids must be unique in a file")
        records[record.id] = record
    if not records:
        raise DataError(f"{path} holds no prompts; expected at least one row")
    return list(records.values())


def _record(row: Any) -> PromptRecord:
    if not isinstance(row, dict):
        raise DataError(f"expected an object with the keys {', '.join(_COLUMNS)}, got {type(row).__name__}")
    missing = [name for name in _REQUIRED if row.get(name) is None]
    if missing:
        raise DataError(f"missing {', '.join(missing)}; a prompt requires {', '.join(_REQUIRED)}")
    unknown = sorted(row.keys() - set(_COLUMNS))
    if unknown:
        raise DataError(
            f"unknown {', '.join(unknown)}; a prompt has {', '.join(_COLUMNS)}; put other values into metadata"
        )
    return PromptRecord(
        id=str(row["id"]) if type(row["id"]) is int else row["id"],
        prompt=tuple(row["prompt"]) if isinstance(row["prompt"], list) else row["prompt"],
        task=row["task"],
        answer=row["answer"],
        metadata={} if row.get("metadata") is None else row["metadata"],
    )
