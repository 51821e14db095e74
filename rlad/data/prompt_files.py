"""Prompts of data files and hub data sets: layout, records, duplicates, and a report of how they were read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlad.config.prompts import HubPrompts, PromptFile, PromptRows
from rlad.data.knights_knaves.prompts import SET_COLUMNS, Form, is_knights_knaves_set
from rlad.data.layouts.base import Columns, Layout, RawPrompt
from rlad.data.layouts.generic import likely_columns
from rlad.data.layouts.mapped import MappedLayout
from rlad.data.layouts.messages import is_conversation
from rlad.data.layouts.registry import recognise
from rlad.data.layouts.values import is_missing, storable
from rlad.data.order import Mixture
from rlad.data.prompt_assembly import assemble, content_digest
from rlad.data.prompt_paths import SourceFile, source_files
from rlad.data.records import PromptRecord, question_key
from rlad.data.row_files import Location, Row, RowFile, row_file
from rlad.data.sources.hub import hub_rows
from rlad.data.sources.progress import slow_progress
from rlad.errors import DataError

_FIELDS = ("id", "prompt", "task", "answer", "metadata")
_SHOWN_ERRORS = 5
_HEAD_ROWS = 64


@dataclass(slots=True, kw_only=True)
class FileReport:
    """One file, hub data set or generator of a prompt source.

    Attributes:
        path: Path or URI of the file, or name of the data set or generator.
        format: Format, for example `jsonl`; `hub` or `generated` for others than files.
        compression: Compression, or None.
        version: SHA-256 of a file on an object store, or commit of a hub data set; None for others.
        layout: Name of the layout.
        columns: Columns of the first row.
        used: Those columns that hold prompt, answer, id or task; the others become metadata.
        rows: Number of rows read.
    """

    path: str
    format: str
    compression: str | None
    version: str | None = None
    layout: str = ""
    columns: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True, kw_only=True)
class PromptReading:
    """Prompts of a source, and how they were read.

    Attributes:
        records: Prompt records.
        locations: Location of each record.
        question_keys: Key of each record's question (see `rlad.data.records.question_key`).
        files: Files in reading order.
        made_ids: Number of records whose id was made from their content.
        duplicates_kept: Number of records whose prompt and answer occurred before.
        duplicates_dropped: Number of rows left out because their prompt and answer occurred before.
        other_answers: Number of records whose prompt occurred before with another answer.
        invalid: Number of rows left out because they are not valid prompts.
        errors: First messages about such rows.
        mixture: Sources of the records; None if all are of one source.
        parts: Readings of a mixture's sources by name, in the order of their records.
    """

    records: list[PromptRecord] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)
    question_keys: list[bytes] = field(default_factory=list)
    files: list[FileReport] = field(default_factory=list)
    made_ids: int = 0
    duplicates_kept: int = 0
    duplicates_dropped: int = 0
    other_answers: int = 0
    invalid: int = 0
    errors: list[str] = field(default_factory=list)
    mixture: Mixture | None = None
    parts: dict[str, PromptReading] = field(default_factory=dict)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the files and data sets that are not local, by their names."""
        files = [*self.files, *(file for part in self.parts.values() for file in part.files)]
        return {file.path: file.version for file in files if file.version is not None}


def read_prompts(source: PromptFile | HubPrompts) -> PromptReading:
    """Read the files or the hub data set of a prompt source.

    Raises:
        DataError: A file is missing, has no rows or an unknown layout, a row is invalid, or two ids are equal. The
            message names file and row.
    """
    reading = PromptReading()
    collector = _Collector(source, reading)
    with slow_progress(f"reading {source.label}") as advance:
        for location, row, layout in islice(_located_rows(source, reading), source.limit):
            advance()
            _read_row(location, row, layout, collector, reading)
    if not reading.records:
        reason = f"; first invalid row: {reading.errors[0]}" if reading.errors else ""
        raise DataError(f"{source.label} holds no prompts; expected at least one valid row{reason}")
    if isinstance(source, PromptFile) and source.split is not None:
        _keep_split(reading, source)
    return reading


def _read_row(location: Location, row: Columns, layout: Layout, collector: _Collector, reading: PromptReading) -> None:
    """Add the prompt of a row to a reading, or the row to the invalid ones."""
    file = reading.files[-1]
    file.rows += 1
    try:
        raw = _raw_prompt(layout, row)
        if not file.used:
            roots = raw.used | {path.partition(".")[0] for path in raw.used}
            file.used = [column for column in file.columns if column in roots]
        record, is_made = assemble(raw, row, collector.source)
    except DataError as error:
        if collector.source.invalid_rows == "refuse":
            raise DataError(f"{location}: {error}") from error
        reading.invalid += 1
        if len(reading.errors) < _SHOWN_ERRORS:
            reading.errors.append(f"{location}: {error}")
    else:
        collector.add(location, record, is_made=is_made)


def file_rows(path: str | Path, *, encoding: str = "utf-8") -> Iterator[Row]:
    """Yield the rows of a file, a folder of files or a glob, each with its location. Object stores are supported.

    Raises:
        DataError: No file is found, or a file cannot be read.
    """
    for _, rows in _opened(PromptFile(path=str(path), encoding=encoding)):
        yield from rows


def read_prompt_file(path: str | Path, *, limit: int | None = None, form: Form = "sentences") -> list[PromptRecord]:
    """Read prompts as by `PromptFile(path=path)`.

    Args:
        path: A file, a folder or a glob.
        limit: Maximum number of rows; None reads all.
        form: Form of the prompts of a K&K set; ignored for other files.

    Raises:
        DataError: As `read_prompts`.
    """
    return read_prompts(PromptFile(path=str(path), limit=limit, form=form)).records


def read_knights_knaves_set(path: str | Path, form: Form) -> list[PromptRecord]:
    """Read a parquet file of the K&K set (columns `quiz`, `names`, `statements`, `solution`) as prompts in either form.

    Raises:
        DataError: The file has other columns, or a puzzle's solution is not unique or differs from the file's.
    """
    first = next(row_file(Path(path)).rows(), None)
    columns = list(first[1]) if first else []
    if not is_knights_knaves_set(columns):
        raise DataError(
            f"{path}: expected the columns of the K&K set ({', '.join(SET_COLUMNS)}), got {', '.join(columns)}"
        )
    return read_prompt_file(path, form=form)


def write_prompt_file(records: Sequence[PromptRecord], path: str | Path) -> None:
    """Write records as a JSONL file that `read_prompt_file` reads back."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            row = {name: getattr(record, name) for name in _FIELDS}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _keep_split(reading: PromptReading, source: PromptFile) -> None:
    """Keep the prompts of one split: the evaluation gets the questions with the smallest keys, at least one."""
    distinct = sorted(set(reading.question_keys))
    if len(distinct) < 2:
        raise DataError(f"{source.path} has one distinct prompt, so it cannot be split; remove `split`")
    evaluation = set(distinct[: min(len(distinct) - 1, max(1, round(source.evaluation_share * len(distinct))))])
    kept = [
        place
        for place, key in enumerate(reading.question_keys)
        if (key in evaluation) == (source.split == "evaluation")
    ]
    reading.records = [reading.records[place] for place in kept]
    reading.locations = [reading.locations[place] for place in kept]
    reading.question_keys = [reading.question_keys[place] for place in kept]


def _located_rows(
    source: PromptFile | HubPrompts, reading: PromptReading
) -> Iterator[tuple[Location, Columns, Layout]]:
    """Yield rows with their layout, and add a report of each file or data set."""
    for report, rows in _opened(source):
        reading.files.append(report)
        located = ((location, _columns(value, location)) for location, value in rows)
        head, decisive = _head(located, source)
        if decisive is None:
            continue
        layout = _layout(decisive, source, head[0][0])
        report.layout, report.columns = layout.name, storable(list(map(str, decisive)))
        for location, row in chain(head, located):
            yield location, row, layout


def _head(
    rows: Iterator[tuple[Location, Columns]], source: PromptRows
) -> tuple[list[tuple[Location, Columns]], Columns | None]:
    """Return the first rows, and the one by which the layout is recognised: the first one with prompt and answer.

    A row before it may lack a value, and with it the column or the notation by which the layout is known. Without such
    a row, the first one of a known layout decides, then the first one.
    """
    head: list[tuple[Location, Columns]] = []
    for location, row in islice(rows, 1 if source.columns else _HEAD_ROWS):
        head.append((location, row))
        if (layout := recognise(row, source.form)) is not None and _is_complete(layout, row):
            return head, row
    known = next((row for _, row in head if recognise(row, source.form) is not None), None)
    return head, known or (head[0][1] if head else None)


def _is_complete(layout: Layout, row: Columns) -> bool:
    try:
        raw = _raw_prompt(layout, row)
    except DataError:
        return False
    return not is_missing(raw.prompt) and not is_missing(raw.answer) and raw.answer != ""


def _opened(source: PromptFile | HubPrompts) -> Iterator[tuple[FileReport, Iterator[Row]]]:
    if isinstance(source, HubPrompts):
        found = hub_rows(source)
        yield FileReport(path=source.label, format="hub", compression=None, version=found.commit), found.rows
        return
    for file in source_files(source.path):
        with _named(file):
            data: RowFile = row_file(file.path)
        report = FileReport(path=file.name, format=data.format, compression=data.compression, version=file.sha256)
        yield report, _named_rows(file, data.rows(source.encoding))


def _named_rows(file: SourceFile, rows: Iterator[Row]) -> Iterator[Row]:
    with _named(file):
        for location, row in rows:
            yield replace(location, path=file.name), row


@contextmanager
def _named(file: SourceFile) -> Iterator[None]:
    """Let errors name the file as the user does, not its local copy."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(file.path), file.name)) from error


def _raw_prompt(layout: Layout, row: Columns) -> RawPrompt:
    try:
        return layout.read(row)
    except DataError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise DataError(
            f"the row does not fit the layout {layout.name} of the file's first row: {type(error).__name__}: {error}; "
            "correct the row, name the columns with `columns`, or set `invalid_rows: drop`"
        ) from error


def _columns(value: Any, location: Location) -> Columns:
    if is_conversation(value):
        return {"conversations": value}  # Open-Reasoner-Zero: a row is a list of turns
    if not isinstance(value, dict):
        raise DataError(
            f"{location}: expected an object with the keys {', '.join(_FIELDS)}, or of another known layout, got "
            f"{type(value).__name__}"
        )
    return value


def _layout(row: Columns, source: PromptRows, location: Location) -> Layout:
    base = recognise(row, source.form)
    if source.columns:
        return MappedLayout(columns={str(name): path for name, path in source.columns.items()}, base=base)
    if base is None:
        names = ", ".join(map(str, row)) or "none"
        prompt, answer = likely_columns(row)
        raise DataError(
            f"{location}: the layout is not known; the columns are: {names}. Name those of the prompt and the answer, "
            f"for example `columns: {{prompt: {prompt}, answer: {answer}}}`"
        )
    return base


class _Collector:
    """Adds records to a reading, with unique ids and counted duplicates."""

    def __init__(self, source: PromptRows, reading: PromptReading) -> None:
        self.source = source
        self._reading = reading
        self._ids: dict[str, Location] = {}
        self._contents: dict[str, Location] = {}
        self._prompts: set[str] = set()
        self._uses: Counter[str] = Counter()

    def add(self, location: Location, record: PromptRecord, *, is_made: bool) -> None:
        prompt, content = content_digest(record.prompt), content_digest(record.prompt, record.answer)
        first = self._contents.setdefault(content, location)
        if first is not location:
            treatment = self.source.duplicates or ("drop" if is_made else "keep")
            if treatment == "refuse":
                raise DataError(
                    f"{location}: prompt and answer are those of {first}; remove one, or set `duplicates: drop`"
                )
            if treatment == "drop":
                self._reading.duplicates_dropped += 1
                return
            self._reading.duplicates_kept += 1
            if is_made:
                record = replace(record, id=f"{record.id}-{self._uses[content]}")
        elif prompt in self._prompts:
            self._reading.other_answers += 1
        self._uses[content] += 1
        self._prompts.add(prompt)
        if (other := self._ids.setdefault(record.id, location)) is not location:
            remedy = "`duplicates: drop`" if first is not location else "`columns: {id: null}` to make ids"
            raise DataError(
                f"{location}: id {record.id!r} was used before, in {other}; ids must be unique in a file: correct one, "
                f"or set {remedy}"
            )
        self._reading.made_ids += is_made
        self._reading.records.append(record)
        self._reading.locations.append(location)
        self._reading.question_keys.append(question_key(record, self.source.prompt_suffix))
