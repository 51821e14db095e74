"""Countdown: numbers and a target, without a text."""

from __future__ import annotations

import json

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import is_missing, parsed
from rlad.errors import DataError


class CountdownLayout:
    """`nums` or `numbers`, and `target`. The prompt is made in the form that the verifier `countdown` judges."""

    name = "Countdown"

    def matches(self, row: Columns) -> bool:
        return has(row, "target") and (has(row, "nums") or has(row, "numbers"))

    def read(self, row: Columns) -> RawPrompt:
        column = "nums" if "nums" in row else "numbers"
        numbers, target = parsed(row.get(column)), row.get("target")
        if not isinstance(numbers, list) or not numbers or target is None or is_missing(target):
            raise DataError(f"expected a list of numbers and a target, got {numbers!r} and {target!r}")
        try:
            answer = {"numbers": [int(number) for number in numbers], "target": int(target)}
        except (TypeError, ValueError) as error:
            raise DataError(f"numbers and target must be whole numbers, got {numbers!r} and {target!r}") from error
        listed = ", ".join(str(number) for number in numbers)
        question = (
            f"Using each of the numbers {listed} exactly once, write an arithmetic expression with + - * / and "
            f"parentheses that equals {answer['target']}. Put the expression into <answer> tags, for example "
            "<answer>(1 + 2) / 3</answer>."
        )
        prompt = row.get("prompt")
        return RawPrompt(
            prompt=question if is_missing(prompt) else prompt,
            answer=json.dumps(answer),
            id=row.get("id"),
            task=row.get("task", "countdown"),
            used=frozenset({"id", "task", "prompt", column, "target"}),
        )
