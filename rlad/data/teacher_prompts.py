"""Prompts of privileged teachers: the student's prompt with more in it, such as the reference answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlad.config.teachers import PROMPT_FIELD
from rlad.data.records import PromptRecord
from rlad.errors import DataError


def teacher_record(record: PromptRecord, template: str) -> PromptRecord:
    """Return a prompt as a teacher with a prompt template sees it.

    The template replaces the text of the prompt, or the content of its last message. Values are inserted as they are:
    braces in them are no fields.

    Args:
        record: The student's prompt.
        template: Setting `prompt_template` of the teacher.

    Raises:
        DataError: The prompt lacks a value that the template names.
    """
    if isinstance(record.prompt, str):
        return replace(record, prompt=_filled(record, template, record.prompt))
    *before, last = record.prompt
    return replace(record, prompt=(*before, {**last, "content": _filled(record, template, last["content"])}))


def _filled(record: PromptRecord, template: str, question: str) -> str:
    def value_of(name: str) -> Any:
        if name in ("question", "answer"):
            return question if name == "question" else record.answer
        key = name.removeprefix("metadata.")
        if record.metadata.get(key) is None:
            raise DataError(
                f"prompt {record.id!r} has no metadata {key!r}, which prompt_template of a teacher names; it has "
                f"{', '.join(sorted(record.metadata)) or 'none'}"
            )
        return record.metadata[key]

    return PROMPT_FIELD.sub(lambda field: str(value_of(field[1])), template)
