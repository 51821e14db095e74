"""Rows of data files: JSON Lines, JSON, CSV, Parquet and Arrow, read one row or batch at a time."""

from __future__ import annotations

import csv
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from rlad.data.file_bytes import (
    compression_of,
    data_ending,
    encoding_of,
    head_of,
    open_decompressed,
    require_data,
)
from rlad.data.json_rows import json_rows
from rlad.errors import DataError

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_BATCH_ROWS = 256
_NO_CELL = ("", "nan", "NaN", "<NA>", "null", "NULL")
_DELIMITER_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # the first line of files from spreadsheets


@dataclass(frozen=True, slots=True)
class Location:
    """Position of a row, for error messages.

    Attributes:
        path: Path of the file.
        unit: `line` or `row`.
        number: Number of the row, from 1.
    """

    path: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


Row = tuple[Location, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """File whose format is known.

    Attributes:
        path: Path of the file.
        format: `jsonl`, `json`, `csv`, `parquet` or `arrow`.
        compression: Compression of the whole file; None if the file is not compressed.
    """

    path: Path
    format: str
    compression: str | None

    def rows(self, encoding: str = "utf-8") -> Iterator[Row]:
        """Yield the rows in order.

        Args:
            encoding: Encoding of text files. A byte order mark takes precedence.

        Raises:
            DataError: The file or a row cannot be read. The message names the file and, where known, the row.
        """
        readers: dict[str, Callable[[], Iterator[tuple[str, int, Any]]]] = {
            "jsonl": lambda: json_rows(self.path, encoding, lines=True),
            "json": lambda: json_rows(self.path, encoding, lines=False),
            "csv": lambda: _csv_rows(self.path, encoding),
            "parquet": lambda: _parquet_rows(self.path),
            "arrow": lambda: _arrow_rows(self.path),
        }
        name = str(self.path)
        try:
            for unit, number, row in readers[self.format]():
                yield Location(name, unit, number), row
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            what = self.compression or self.format
            raise DataError(
                f"{self.path} is not a readable {what} file: {error}; it may be cut off: fetch or write it again"
            ) from error


def is_data_name(path: PurePath) -> bool:
    """Return True if the ending is that of a prompt file."""
    return data_ending(path) in _FORMATS


def row_file(path: Path) -> RowFile:
    """Return a file with its format. Parquet and Arrow are known by content, other formats by ending.

    Raises:
        DataError: The file is empty, is not data, or its format is unknown.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} holds no prompts: the file is empty (0 bytes); fetch or write it again")
    require_data(path)
    compression = compression_of(head_of(path))
    try:
        with open_decompressed(path) as file:
            head = file.read(64)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} is not a readable {compression} file: {error}; it may be cut off: fetch or write it again"
        ) from error
    return RowFile(path=path, format=_format_of(path, head), compression=compression)


def _format_of(path: Path, head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if (known := _FORMATS.get(data_ending(path))) is not None:
        return known
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return "json"
    raise DataError(
        f"a prompt file must be .jsonl or .parquet, or .ndjson, .json, .csv, .tsv, .arrow (also as .gz, .bz2, .xz, "
        f".zst), got {path}"
    )


def _csv_rows(path: Path, encoding: str) -> Iterator[tuple[str, int, Any]]:
    csv.field_size_limit(2**31 - 1)  # programs and tests are longer than the default of 128 KiB
    try:
        with open_decompressed(path) as file:
            encoding = encoding_of(file.read(4), encoding)
        with (
            open_decompressed(path) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as text,
        ):
            header_line = text.readline()
            if (declared := _DELIMITER_LINE.fullmatch(header_line)) is not None:
                header_line = text.readline()
            delimiter = declared[1] if declared else max("\t,;|", key=header_line.count)
            # A quoted header may span lines; column names that do are not supported.
            header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
            if len(set(header)) != len(header):
                raise DataError(f"{path}, row 1: two columns have the same name in {header}; rename one")
            for number, cells in enumerate(csv.reader(text, delimiter=delimiter, strict=True), start=1):
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, row {number}: expected {len(header)} cells as in the header, got {len(cells)}; "
                        "quote cells that contain the delimiter or a line break"
                    )
                yield (
                    "row",
                    number,
                    {name: None if cell in _NO_CELL else cell for name, cell in zip(header, cells, strict=True)},
                )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} text: {error}; set `encoding`, for example gb18030") from error
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}; check the quotes") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    import pyarrow.parquet  # Imported here because the import takes 0.3 s that JSON files do not need.

    try:
        with pyarrow.parquet.ParquetFile(_seekable(path)) as file:
            yield from table_rows(file.iter_batches(batch_size=_BATCH_ROWS))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error


def _arrow_rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    import pyarrow

    try:
        source = _seekable(path)
        source = pyarrow.memory_map(str(path)) if isinstance(source, Path) else pyarrow.BufferReader(source)
        with source:
            if source.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(source)
                yield from table_rows(reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                source.seek(0)
                yield from table_rows(iter(pyarrow.ipc.open_stream(source)))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable Arrow file: {error}") from error


def table_rows(batches: Iterator[Any]) -> Iterator[tuple[str, int, Any]]:
    """Yield unit, number and value of each row of Arrow record batches."""
    number = 0
    for batch in map(_with_short_floats, batches):
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield "row", number, row


def _seekable(path: Path) -> Any:
    """Return the path, or the decompressed contents of a compressed file in memory."""
    if compression_of(head_of(path)) is None:
        return path
    import pyarrow

    with open_decompressed(path) as file:
        return pyarrow.py_buffer(file.read())


def _with_short_floats(batch: Any) -> Any:
    """Return a batch whose columns of small floats read as they were written: 0.1 instead of 0.10000000149011612."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        if pyarrow.types.is_float32(field.type) or pyarrow.types.is_float16(field.type):
            kind = np.float32 if pyarrow.types.is_float32(field.type) else np.float16
            values = [None if value is None else float(str(kind(value))) for value in batch.column(index).to_pylist()]
            batch = batch.set_column(index, field.name, pyarrow.array(values, pyarrow.float64()))
    return batch
