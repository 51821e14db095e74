"""Prompt files: JSONL or parquet with the columns `id, prompt, task, answer, metadata`, and the parquet files of the K&K set as they are."""

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
"""Where a row stands, for messages, and its columns."""


def read_prompt_file(path: str | Path, *, limit: int | None = None, form: Form = "sentences") -> list[PromptRecord]:
    """Read a .jsonl or .parquet file, or only its first `limit` rows.

    `id` is text or a whole number; `prompt` is text, or a list of `{role, content}`; `task` and `answer` are text; `metadata` is a mapping
    and may be left out.
    A parquet file in the K&K set's own layout is read as `read_knights_knaves_set` does, in `form`; other files have none.

    Raises:
        DataError: a missing file, a row that is wrong (with its line), two equal ids, or no rows at all.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no prompt file at {path}")
    if path.suffix == ".jsonl":
        return _collect(path, _jsonl_rows(path), _record, limit)
    if path.suffix == ".parquet":
        columns, rows = _parquet_rows(path)
        return _collect(
            path, rows, partial(record_of_set_row, form=form) if is_knights_knaves_set(columns) else _record, limit
        )
    raise DataError(f"a prompt file is .jsonl or .parquet, got {path}")


def read_knights_knaves_set(path: str | Path, form: Form) -> list[PromptRecord]:
    """Read a parquet file of the K&K set (columns `quiz`, `names`, `statements`, `solution`) as prompts in either form.

    Raises:
        DataError: not such a file, or a puzzle whose solution is not unique or not the one the file gives.
    """
    path = Path(path)
    columns, rows = _parquet_rows(path)
    if not is_knights_knaves_set(columns):
        raise DataError(f"{path} has not the columns of the K&K set, but {', '.join(columns)}")
    return _collect(path, rows, partial(record_of_set_row, form=form), None)


def write_prompt_file(records: Sequence[PromptRecord], path: str | Path) -> None:
    """Write records as JSONL that `read_prompt_file` reads back, for example generated puzzles for another program."""
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
    """Column names, and the rows."""
    import pyarrow.parquet  # a third of a second that JSONL files need not wait for

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable parquet: {error}") from error
    return table.column_names, ((f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def _collect(
    path: Path, rows: Iterable[Row], convert: Callable[[Any], PromptRecord], limit: int | None
) -> list[PromptRecord]:
    records: dict[str, PromptRecord] = {}
    for place, row in islice(rows, limit):
        try:
            record = convert(row)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        if record.id in records:
            raise DataError(f"{place}: id {record.id!r} was used before; ids are unique in a file")
        records[record.id] = record
    if not records:
        raise DataError(f"{path} holds no prompts")
    return list(records.values())


def _record(row: Any) -> PromptRecord:
    if not isinstance(row, dict):
        raise DataError(f"expected an object with {', '.join(_COLUMNS)}, got {type(row).__name__}")
    missing = [name for name in _REQUIRED if row.get(name) is None]
    if missing:
        raise DataError(f"missing {', '.join(missing)}; a prompt has {', '.join(_COLUMNS)}")
    unknown = sorted(row.keys() - set(_COLUMNS))
    if unknown:
        raise DataError(
            f"unknown {', '.join(unknown)}; a prompt has {', '.join(_COLUMNS)}: put anything else into metadata"
        )
    return PromptRecord(
        id=str(row["id"]) if type(row["id"]) is int else row["id"],
        prompt=tuple(row["prompt"]) if isinstance(row["prompt"], list) else row["prompt"],
        task=row["task"],
        answer=row["answer"],
        metadata={} if row.get("metadata") is None else row["metadata"],
    )
