"""HumanEval: a function's head as the prompt, and a test function."""

from __future__ import annotations

import json

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.programming.code_answers import with_starter_code


class HumanEvalLayout:
    """`prompt, test, entry_point`."""

    name = "HumanEval"

    def matches(self, row: Columns) -> bool:
        return has(row, "prompt", "test", "entry_point")

    def read(self, row: Columns) -> RawPrompt:
        asserts = f"{row.get('test')}\ncheck({row.get('entry_point')})"
        return RawPrompt(
            prompt=with_starter_code("Complete this Python function.", row.get("prompt")),
            answer=json.dumps({"asserts": asserts}, ensure_ascii=False),
            id=row.get("id", row.get("task_id")),
            task=row.get("task", "code"),
            used=frozenset({"id", "task_id", "task", "prompt", "test"}),
        )
