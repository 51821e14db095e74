"""Rows of JSON Lines and of JSON documents."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlad.data.file_bytes import encoding_of, open_decompressed
from rlad.data.layouts.messages import is_conversation
from rlad.errors import DataError

_HEAD_BYTES = 1 << 16
_ROW_KEYS = ("data", "rows", "train", "examples", "instances", "records", "items", "prompts", "questions", "problems")
_TEXT_COLUMNS = {"prompt", "problem", "question", "instruction", "input", "text"}

JsonRow = tuple[str, int, Any]


def json_rows(path: Path, encoding: str, *, lines: bool) -> Iterator[JsonRow]:
    """Yield unit, number and value of each row.

    A JSON Lines file is read line by line. A document is an array, several values in sequence, or an object that
    contains the rows (`{"data": [...]}`), maps columns to lists, or maps ids to rows.

    Args:
        path: Path of the file, which may be compressed.
        encoding: Encoding of the text.
        lines: Whether the name promises JSON Lines. The content decides where it is clear.

    Raises:
        DataError: A line or the document is not JSON or not in this encoding.
    """
    with open_decompressed(path) as file:
        head = file.read(_HEAD_BYTES)
    found = encoding_of(head, encoding)
    if found.startswith(("utf-16", "utf-32")):
        yield from _document_rows(path, found)
    elif _is_document(head, encoding, lines=lines):
        yield from _document_rows(path, encoding)
    else:
        yield from _line_rows(path, encoding)


def _is_document(head: bytes, encoding: str, *, lines: bool) -> bool:
    text = head.removeprefix(codecs.BOM_UTF8).decode(encoding, errors="replace").lstrip()
    first, *others = text.splitlines() or [""]
    if text.startswith("[") or first.strip() == "{":
        return True
    if lines or not text.startswith("{"):
        return False
    if not any(line.strip() for line in others):
        return True
    try:
        json.loads(first)
    except ValueError:
        return True
    return False


def _line_rows(path: Path, encoding: str) -> Iterator[JsonRow]:
    number = 0
    with open_decompressed(path) as file:
        for chunk in file:
            for line in chunk.rstrip(b"\r\n").split(b"\r"):
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8)  # concatenated files have several
                if line.strip(b" \t\x1a"):
                    yield "line", number, _parsed_line(path, number, line, encoding)


def _parsed_line(path: Path, number: int, line: bytes, encoding: str) -> Any:
    try:
        return _loaded(line.decode(encoding))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON: the bytes are not {encoding} ({error.reason} at byte "
            f"{error.start}); set `encoding` of the prompt source, for example gb18030 or latin-1, or convert the file "
            "with iconv"
        ) from error
    except (ValueError, RecursionError) as error:
        stripped = line.strip()
        if stripped.startswith(b"{'"):
            remedy = "the line is in Python's notation: write it with json.dumps"
        elif isinstance(error, RecursionError):
            remedy = "the values are nested too deeply: flatten or remove them"
        elif stripped.startswith((b"//", b"#")):
            remedy = "JSON has no comments: remove them"
        elif stripped.endswith((b"}", b"]")):
            remedy = "correct or remove the line"
        else:
            remedy = "the line may be cut off: fetch the file again, or correct or remove the line"
        raise DataError(f"{path}, line {number}: not valid JSON: {error}; {remedy}") from error


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        if not line.rstrip().endswith("},"):  # lines cut out of an array
            raise
        return json.loads(line.rstrip()[:-1])
    except ValueError:  # an integer with more digits than Python converts
        return json.loads(line, parse_int=_integer)


def _integer(digits: str) -> int | str:
    """Return an integer, or its digits if they are more than Python converts."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _document_rows(path: Path, encoding: str) -> Iterator[JsonRow]:
    try:
        with open_decompressed(path) as file:
            text = file.read().decode("utf-8-sig" if encoding == "utf-8" else encoding).strip("\ufeff\x00\x1a \t\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the bytes are not {encoding} ({error.reason} at byte {error.start}); set `encoding` of the "
            "prompt source, for example gb18030 or latin-1"
        ) from error
    values = []
    decoder, position = json.JSONDecoder(parse_int=_integer), 0
    try:
        while position < len(text):
            value, position = decoder.raw_decode(text, position)
            values.append(value)
            while position < len(text) and text[position] in ", \t\r\n":
                position += 1
    except json.JSONDecodeError as error:
        has_comma = text[: error.pos].rstrip().endswith(",") and text[error.pos : error.pos + 1] in ("]", "}")
        remedy = (
            "remove the comma before the bracket"
            if has_comma
            else "JSON has no comments: remove them"
            if text[error.pos : error.pos + 2] == "//" or text[error.pos : error.pos + 1] == "#"
            else "the file may be cut off: fetch it again, or correct the line"
        )
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg} at column {error.colno}; {remedy}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if len(values) == 1:
        rows = _rows_in(path, values[0])
    elif all(_is_list_of(value, dict) and not is_conversation(value) for value in values):
        rows = [row for value in values for row in value]  # an array of rows on each line
    else:
        rows = values
    yield from (("row", number, row) for number, row in enumerate(rows, start=1))


def _rows_in(path: Path, value: Any) -> list[Any]:
    """Return the rows that a document holds."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return [value]
    if value.keys() >= {"columns", "data"} and isinstance(value["columns"], list):  # pandas, orient="split"
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    lists = {key for key, item in value.items() if key in _ROW_KEYS and _is_list_of(item, dict)}
    if len(lists) > 1:
        raise DataError(f"{path} holds several lists of rows ({', '.join(sorted(lists))}); write one file for each")
    if lists:
        rows = value[lists.pop()]
        return [row["row"] if row.keys() >= {"row_idx", "row"} else row for row in rows]  # the hub's rows API
    if all(isinstance(item, dict) for item in value.values()):
        return _rows_of_mappings(value)
    lengths = {len(item) if isinstance(item, list) else -1 for item in value.values()}
    if len(lengths) == 1 and -1 not in lengths and any(_is_list_of(value.get(key), str) for key in _TEXT_COLUMNS):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return [value]


def _rows_of_mappings(value: dict[str, dict[str, Any]]) -> list[Any]:
    """Return the rows of `{column: {index: value}}` (pandas) or `{id: row}`."""
    inner = list(value.values())
    if all(item.keys() == inner[0].keys() and all(key.isdigit() for key in item) for item in inner) and inner[0]:
        return [{column: cells[index] for column, cells in value.items()} for index in inner[0]]
    return [{"id": key, **row} for key, row in value.items()]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
