"""APPS and TACO: a question with tests in `input_output`."""

from __future__ import annotations

from dataclasses import dataclass

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.programming.code_answers import answer_of_tests, with_starter_code


@dataclass(frozen=True, slots=True)
class AppsLayout:
    """`question, input_output, starter_code`.

    Attributes:
        name: Name of the layout.
        required: Further columns by which the layout is recognised.
    """

    name: str = "APPS"
    required: tuple[str, ...] = ()

    def matches(self, row: Columns) -> bool:
        return has(row, "question", "input_output", *self.required)

    def read(self, row: Columns) -> RawPrompt:
        return RawPrompt(
            prompt=with_starter_code(row.get("question"), row.get("starter_code")),
            answer=answer_of_tests(row.get("input_output")),
            id=row.get("id"),
            task=row.get("task", "code"),
            used=frozenset({"id", "task", "question", "input_output", "solutions"}),
        )
