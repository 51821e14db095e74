"""Problem and answer, the columns that most mathematics data sets share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import is_missing, last_boxed
from rlad.errors import DataError

_NO_ANSWER = {"proof", "notfound", "not found", "n/a", "none", ""}


@dataclass(frozen=True, slots=True)
class ProblemLayout:
    """`problem` with `answer`, or with a `solution` whose last box is the answer.

    Attributes:
        name: Name of the layout.
        required: Columns by which the layout is recognised.
        left_out: Columns that are not repeated in the metadata, such as generated solutions.
    """

    name: str
    required: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def matches(self, row: Columns) -> bool:
        return has(row, "problem", *self.required)

    def read(self, row: Columns) -> RawPrompt:
        return RawPrompt(
            prompt=row.get("problem"),
            answer=self._answer(row),
            id=row.get("id"),
            task=row.get("task", "math"),
            used=frozenset({"id", "task", "problem", "answer", *self.left_out}),
        )

    def _answer(self, row: Columns) -> Any:
        answer = row.get("answer")
        if not is_missing(answer) and str(answer).strip().lower() not in _NO_ANSWER:
            return answer
        boxed = last_boxed(row.get("solution"))
        if boxed is None:
            raise DataError(
                f"missing answer: `answer` is {answer!r} and `solution` has no \\boxed{{...}}; set "
                "`invalid_rows: drop` to leave out such rows"
            )
        return boxed
