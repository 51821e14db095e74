"""Conversion of values in data files: answers, ids, metadata, nested columns."""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlad.errors import DataError


def is_missing(value: Any) -> bool:
    """Return True for None and for NaN, which pandas writes for missing values."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def parsed(value: Any) -> Any:
    """Return the value of JSON text that holds a list or mapping. Other values are returned unchanged.

    Python's notation is parsed too if it holds mappings: pandas writes it into CSV files.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        if not value.lstrip().startswith(("{'", "[{'")):
            return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def text_answer(value: Any) -> Any:
    """Return an answer as text.

    Whole numbers lose their fraction (27.0 becomes `27`), a list of one text or number becomes that, other lists and
    mappings become JSON.

    Raises:
        DataError: The answer is missing, infinite or of another kind.
    """
    if isinstance(value, bytes):
        value = decoded(value)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise DataError(
            f"missing answer ({value!r}); add one, name its column with `columns: {{answer: COLUMN}}`, or set "
            "`invalid_rows: drop`"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise DataError(f"the answer is {value}; expected a finite number")
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | int | float):
        return text_answer(value[0])
    if isinstance(value, list | dict):
        if not value:
            raise DataError(f"missing answer ({value!r}); add one, or set `invalid_rows: drop`")
        try:
            return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise DataError(
                f"the answer holds a number that is not finite: {value!r}; correct it, or set `invalid_rows: drop`"
            ) from error
    raise DataError(f"the answer must be text, a number, a list or a mapping, got {type(value).__name__}")


def id_text(value: Any) -> str:
    """Return an identifier as text.

    Raises:
        DataError: It is not text or a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = decoded(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"id must be text and not empty, or a whole number, got {value!r}; correct it, or let "
            "`columns: {id: null}` make ids"
        )
    return str(value)


def decoded(value: bytes) -> str:
    """Return the text of a binary column.

    Raises:
        DataError: The bytes are not UTF-8.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected text, got {len(value)} bytes that are not UTF-8; write the column as text, or name another one "
            "with `columns`"
        ) from error


def plain(value: Any) -> Any:
    """Return a value of a data file as JSON can hold it. Times become ISO text, bytes a note of their length."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def storable(value: Any) -> Any:
    """Return metadata as every reader of JSON takes it: `?` for lone surrogates, null for NaN, text for infinity."""
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


_ABSENT = object()


def at_path(row: Any, path: str) -> Any:
    """Return the value at a dotted path, for example `reward_model.ground_truth` or `messages.0.content`.

    A column whose name contains the dots takes precedence. JSON text on the way is parsed.

    Raises:
        DataError: The row has no such value.
    """
    found = _walk(row, path.split("."))
    if found is _ABSENT:
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"no column `{path}`; the row has: {columns}")
    return found


def _walk(value: Any, steps: Sequence[str]) -> Any:
    if not steps:
        return value
    value = parsed(value)
    if isinstance(value, Mapping):
        for length in range(len(steps), 0, -1):
            name = ".".join(steps[:length])
            if name in value:
                return _walk(value[name], steps[length:])
    elif isinstance(value, list) and steps[0].lstrip("-").isdigit():
        try:
            return _walk(value[int(steps[0])], steps[1:])
        except IndexError:
            return _ABSENT
    return _ABSENT


def last_boxed(text: Any) -> str | None:
    r"""Return the contents of the last `\boxed{...}` of a solution, or None."""
    if not isinstance(text, str) or (start := max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))) < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end].strip()
    return None
