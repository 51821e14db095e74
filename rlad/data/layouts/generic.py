"""Layout of rows with one question column and one answer column under common names."""

from __future__ import annotations

from dataclasses import dataclass

from rlad.data.layouts.base import Columns, RawPrompt
from rlad.data.layouts.values import is_missing

_QUESTIONS = (
    *("prompt", "messages", "conversations", "problem", "question", "query", "instruction", "input"),
    *("problem_text", "question_text", "text"),
)
_ANSWERS = (
    *("answer", "final_answer", "ground_truth", "expected_answer", "reference_answer", "gold_answer", "correct_answer"),
    *("groundtruth", "gt_answer", "gt", "gold", "label", "target", "solution", "response", "output", "completion"),
)
_CONTEXTS = ("context", "passage", "body", "story", "article")


@dataclass(frozen=True, slots=True)
class QuestionAnswerLayout:
    """Question and answer under common column names in any capitalisation, for example `Problem` and `Answer`.

    A context or passage, without which the question cannot be answered, comes before the question.
    """

    name: str = "question and answer"

    def matches(self, row: Columns) -> bool:
        return _find(row, _QUESTIONS) is not None and _find(row, _ANSWERS) is not None

    def read(self, row: Columns) -> RawPrompt:
        question, answer = _find(row, _QUESTIONS), _find(row, _ANSWERS)
        identifier = _find(row, ("id",))
        metadata = row.get("metadata")
        prompt, context = None if question is None else row[question], _find(row, _CONTEXTS)
        if context is not None and isinstance(row[context], str) and row[context].strip() and isinstance(prompt, str):
            prompt = f"{row[context].strip()}\n\n{prompt}"
        used = {question, answer, identifier, context, "task"} | ({"metadata"} if isinstance(metadata, dict) else set())
        return RawPrompt(
            prompt=prompt,
            answer=None if answer is None else row[answer],
            id=None if identifier is None else row[identifier],
            task=row.get("task"),
            used=frozenset(name for name in used if name is not None),
            metadata=metadata if isinstance(metadata, dict) else {},
        )


def likely_columns(row: Columns) -> tuple[str, str]:
    """Return the columns that may hold prompt and answer, `COLUMN` where none stands out, for a message."""
    names = [str(column) for column in row]
    prompt = next((name for name in _QUESTIONS if name in map(str.lower, names)), None)
    if prompt is None:
        texts = {str(column): value for column, value in row.items() if isinstance(value, str)}
        prompt = max(texts, key=lambda name: len(texts[name]), default="COLUMN")
    signs = ("answer", "solution", "truth", "gold", "target", "label", "output", "result")
    others = [name for name in names if name.lower() != prompt.lower()]
    answer = next((name for sign in signs for name in others if sign in name.lower()), "COLUMN")
    return next((name for name in names if name.lower() == prompt), prompt), answer


def _find(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first column with one of the names, those with a value first."""
    by_name = {str(column).lower(): column for column in row}
    present = [by_name[name] for name in names if name in by_name]
    return next((column for column in present if not is_missing(row[column])), present[0] if present else None)
