"""Multiple choice: MMLU, ARC, MedQA and their relatives."""

from __future__ import annotations

import re
import string
from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt
from rlad.data.layouts.values import parsed
from rlad.errors import DataError

_CHOICES = ("choices", "options")
_QUESTIONS = ("question", "question_stem", "problem", "stem")
_ANSWERS = (
    *("answerKey", "answer_idx", "answer_index", "answer_key", "answer", "correct_answer", "correct_option", "correct"),
    *("label", "cop"),
)
_LABEL = re.compile(r"\(?([A-Z])\s*[).:]\s*")


class MultipleChoiceLayout:
    """`question` with `choices` or `options`, and the answer as a letter, an index or the text of a choice.

    The prompt lists the choices by letter. The answer is a letter.
    """

    name = "multiple choice"

    def matches(self, row: Columns) -> bool:
        return (
            any(name in row for name in _QUESTIONS)
            and any(isinstance(parsed(row.get(name)), list | dict) for name in _CHOICES)
            and any(name in row for name in _ANSWERS)
        )

    def read(self, row: Columns) -> RawPrompt:
        question = next(name for name in _QUESTIONS if name in row)
        choices_column = next(name for name in _CHOICES if name in row)
        answer_column = next(name for name in _ANSWERS if name in row)
        letters, texts = _choices(parsed(row[choices_column]))
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
        return RawPrompt(
            prompt=f"{row[question]}\n\n{listed}",
            answer=_letter(row[answer_column], letters, texts),
            id=row.get("id"),
            task=row.get("task", "multiple_choice"),
            used=frozenset({"id", "task", question, choices_column, answer_column}),
        )


def _choices(choices: Any) -> tuple[list[str], list[str]]:
    if isinstance(choices, dict) and choices.keys() >= {"text", "label"}:  # ARC
        return [str(label) for label in choices["label"]], [str(text) for text in choices["text"]]
    if isinstance(choices, dict):
        return [str(label) for label in choices], [str(text) for text in choices.values()]
    if isinstance(choices, list) and 0 < len(choices) <= len(string.ascii_uppercase):
        letters, texts = list(string.ascii_uppercase[: len(choices)]), [str(text) for text in choices]
        labels = [_LABEL.match(text) for text in texts]
        if [label and label[1] for label in labels] == letters:  # AQuA: `A)21`
            texts = [text[label.end() :] for text, label in zip(texts, labels, strict=True) if label]
        return letters, texts
    raise DataError(f"expected a list or mapping of choices, got {choices!r}")


def _letter(answer: Any, letters: list[str], texts: list[str]) -> str:
    if isinstance(answer, str) and answer in letters:
        return answer
    if isinstance(answer, str) and texts.count(answer) == 1:
        return letters[texts.index(answer)]
    position = int(answer) if isinstance(answer, str) and answer.isdigit() else answer
    if isinstance(position, int) and not isinstance(position, bool) and 0 <= position < len(letters):
        return letters[position]
    raise DataError(f"the answer {answer!r} is none of the choices {', '.join(letters)}")
