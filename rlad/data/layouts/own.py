"""Layout of rlad: `id, prompt, task, answer, metadata`."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import is_missing, parsed
from rlad.errors import DataError


class OwnLayout:
    """Prompt, answer, and an id or a task. Text is encoded verbatim."""

    name = "rlad"

    def matches(self, row: Columns) -> bool:
        return has(row, "prompt") and (
            has(row, "id", "task") or (has(row, "answer") and (has(row, "id") or has(row, "task")))
        )

    def read(self, row: Columns) -> RawPrompt:
        missing = [name for name in ("prompt", "answer") if is_missing(row.get(name))]
        if missing:
            raise DataError(
                f"missing {', '.join(missing)}; a prompt requires prompt and answer: add the value, name its column "
                "with `columns`, or set `invalid_rows: drop`"
            )
        metadata = parsed(row.get("metadata"))
        if not is_missing(metadata) and not isinstance(metadata, dict):
            raise DataError(
                f"metadata must be a mapping, got {metadata!r}; correct it, or leave it out with "
                "`columns: {metadata: null}`"
            )
        return RawPrompt(
            prompt=row["prompt"],
            answer=row["answer"],
            id=row.get("id"),
            task=row.get("task"),
            task_is_explicit=True,
            verbatim=True,
            used=frozenset({"id", "prompt", "task", "answer", "metadata"}),
            metadata={} if is_missing(metadata) else metadata,
        )
