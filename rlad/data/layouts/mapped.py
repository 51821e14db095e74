"""Layout that the prompt source's `columns` describes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlad.data.layouts.base import Columns, Layout, RawPrompt
from rlad.data.layouts.values import at_path, is_missing, parsed
from rlad.errors import DataError

_FIELDS = ("id", "prompt", "task", "answer", "metadata")


@dataclass(frozen=True, slots=True)
class MappedLayout:
    """Fields at the paths of `columns`.

    Attributes:
        columns: Dotted path of each field; None for a field that is left out.
        base: Layout that was recognised, which gives the other fields. None if none was recognised: then they come
            from the columns of the same name.
    """

    columns: Mapping[str, str | None]
    base: Layout | None

    @property
    def name(self) -> str:
        return f"columns over {self.base.name}" if self.base else "columns"

    def matches(self, row: Columns) -> bool:
        return True

    def read(self, row: Columns) -> RawPrompt:
        mapped = {field: None if path is None else at_path(row, path) for field, path in self.columns.items()}
        base = self._base(row, mapped)
        values: dict[str, Any] = {field: mapped.get(field, getattr(base, field)) for field in _FIELDS}
        metadata = parsed(values["metadata"])
        if not is_missing(metadata) and not isinstance(metadata, Mapping):
            raise DataError(
                f"metadata must be a mapping, got {metadata!r}; correct it, or leave it out with "
                "`columns: {metadata: null}`"
            )
        return RawPrompt(
            **{**values, "metadata": {} if is_missing(metadata) else metadata},
            task_is_explicit=base.task_is_explicit or mapped.get("task") is not None,
            verbatim=base.verbatim and "prompt" not in mapped,
            used=base.used | {path for path in self.columns.values() if path is not None},
        )

    def _base(self, row: Columns, mapped: Mapping[str, Any]) -> RawPrompt:
        if self.base is not None:
            # The base may refuse a value that a mapped column replaces: it then reads the row with that value.
            for candidate in (row, {**row, **mapped}):
                with contextlib.suppress(DataError):
                    return self.base.read(candidate)
            if not {"prompt", "answer"} <= mapped.keys():
                return self.base.read(row)
        return RawPrompt(
            prompt=row.get("prompt"),
            answer=row.get("answer"),
            id=row.get("id"),
            task=row.get("task"),
            task_is_explicit=True,
            used=frozenset(_FIELDS),
            metadata=parsed(row.get("metadata")),
        )
