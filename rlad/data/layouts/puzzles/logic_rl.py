"""Logic-RL: the parquet files of the Knights & Knaves set."""

from __future__ import annotations

from dataclasses import dataclass

from rlad.data.knights_knaves.prompts import SET_COLUMNS, Form, is_knights_knaves_set, record_of_set_row
from rlad.data.layouts.base import Columns, RawPrompt


@dataclass(frozen=True, slots=True)
class LogicRlLayout:
    """`quiz, names, statements, solution`.

    Attributes:
        form: Form of the prompts.
    """

    form: Form
    name: str = "Logic-RL"

    def matches(self, row: Columns) -> bool:
        return is_knights_knaves_set(list(row))

    def read(self, row: Columns) -> RawPrompt:
        record = record_of_set_row({**dict.fromkeys(SET_COLUMNS), **row}, self.form)
        return RawPrompt(
            prompt=record.prompt if isinstance(record.prompt, str) else list(record.prompt),
            answer=record.answer,
            id=record.id,
            task=record.task,
            task_is_explicit=True,
            verbatim=True,
            used=frozenset(row),
            metadata=record.metadata,
        )
