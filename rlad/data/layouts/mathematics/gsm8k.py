"""GSM8K: the answer follows `####` at the end of the derivation."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.errors import DataError


class Gsm8kLayout:
    """`question, answer`, with the derivation and `#### 3` in the answer."""

    name = "GSM8K"

    def matches(self, row: Columns) -> bool:
        return has(row, "question", "answer") and "####" in str(row["answer"])

    def read(self, row: Columns) -> RawPrompt:
        derivation, mark, answer = str(row.get("answer")).rpartition("####")
        if not mark or not answer.strip():
            raise DataError(
                f"missing answer: expected `#### NUMBER` at the end of `answer`, got {row.get('answer')!r}; correct "
                "it, or set `invalid_rows: drop`"
            )
        return RawPrompt(
            prompt=row.get("question"),
            answer=answer.strip().replace(",", ""),
            id=row.get("id"),
            task=row.get("task", "math"),
            used=frozenset({"id", "task", "question", "answer"}),
            metadata={"solution": derivation.strip()},
        )
