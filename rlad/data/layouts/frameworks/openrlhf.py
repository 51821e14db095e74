"""OpenRLHF: the question in `input` or `context_messages`, the answer in `label`."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has


class OpenRlhfLayout:
    """`input, label`, the defaults of OpenRLHF's `--input_key` and `--label_key`."""

    name = "OpenRLHF"

    def matches(self, row: Columns) -> bool:
        return has(row, "label") and (has(row, "input") or has(row, "context_messages"))

    def read(self, row: Columns) -> RawPrompt:
        question = "context_messages" if "context_messages" in row else "input"
        return RawPrompt(
            prompt=row.get(question),
            answer=row.get("label"),
            id=row.get("id"),
            task=row.get("task"),
            used=frozenset({"id", "task", question, "label"}),
        )
