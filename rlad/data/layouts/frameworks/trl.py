"""TRL: `prompt` as text or messages, and the answer in a column for the reward function."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has

_ANSWERS = ("solution", "ground_truth", "answer")


class TrlLayout:
    """`prompt` with `solution`, `ground_truth` or `answer`, as in TRL's examples of GRPO."""

    name = "TRL"

    def matches(self, row: Columns) -> bool:
        return has(row, "prompt") and any(name in row for name in _ANSWERS)

    def read(self, row: Columns) -> RawPrompt:
        # `solution` is a whole derivation where the row has the bare answer as well.
        answer = next((name for name in ("answer", "ground_truth", "solution") if name in row), "solution")
        return RawPrompt(
            prompt=row.get("prompt"),
            answer=row.get(answer),
            id=row.get("id"),
            task=row.get("task"),
            used=frozenset({"id", "task", "prompt", answer}),
        )
