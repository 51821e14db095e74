"""ShareGPT and OpenAI conversations: the last turn of the assistant is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.messages import chat_or_text, turns_of
from rlad.data.layouts.values import is_missing, parsed
from rlad.errors import DataError

_ANSWERS = ("answer", "ground_truth", "label", "solution")


@dataclass(frozen=True, slots=True)
class ConversationLayout:
    """Conversations whose last turn, if the assistant's, is left out of the prompt.

    An answer column takes precedence over that turn as the answer.

    Attributes:
        name: Name of the layout.
        column: Column of the conversation.
    """

    name: str
    column: str

    def matches(self, row: Columns) -> bool:
        return has(row, self.column) and isinstance(parsed(row[self.column]), list | dict)

    def read(self, row: Columns) -> RawPrompt:
        turns = turns_of(parsed(row.get(self.column)))
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{self.column} must be a list of messages, got {turns!r}")
        turns, last = list(turns), turns[-1]
        answer_column = next((name for name in _ANSWERS if not is_missing(row.get(name))), None)
        answer: Any = None if answer_column is None else row[answer_column]
        if isinstance(last, dict) and "ground_truth" in last:  # Open-Reasoner-Zero
            truth = last["ground_truth"]
            answer = truth.get("value") if isinstance(truth, dict) else truth
            turns.pop()
        elif _role(last) == "assistant":
            turns.pop()
            answer = _content(last) if answer is None else answer
        if not turns:
            raise DataError(f"{self.column} has no turn of the user, got {last!r}")
        system = row.get("system")
        if isinstance(system, str) and system and _role(turns[0]) != "system":
            turns.insert(0, {"role": "system", "content": system})
        return RawPrompt(
            prompt=turns,
            answer=answer,
            id=row.get("id"),
            task=row.get("task"),
            used=frozenset({"id", "task", "system", self.column, *([answer_column] if answer_column else [])}),
        )


def _role(turn: Any) -> Any:
    found = chat_or_text([turn])
    return found[0].get("role") if isinstance(found[0], dict) else None


def _content(turn: Any) -> Any:
    return chat_or_text([turn])[0]["content"]
