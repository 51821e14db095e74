"""MBPP: a sentence and three assertions, which the prompt shows."""

from __future__ import annotations

import json

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import parsed
from rlad.errors import DataError


class MbppLayout:
    """`text` (in the sanitized version `prompt`), `test_list`, and `test_setup_code` or `test_imports`."""

    name = "MBPP"

    def matches(self, row: Columns) -> bool:
        return has(row, "test_list") and (has(row, "text") or has(row, "prompt"))

    def read(self, row: Columns) -> RawPrompt:
        question = "text" if "text" in row else "prompt"
        tests = parsed(row.get("test_list"))
        if not isinstance(tests, list) or not tests or not isinstance(row.get(question), str):
            raise DataError(f"expected a text and a test_list with at least one assertion, got {tests!r}")
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        shown = "\n".join(map(str, tests))
        return RawPrompt(
            prompt=f"{row[question]}\nYour code should pass these tests:\n```python\n{shown}\n```",
            answer=json.dumps({"asserts": f"{setup}\n{shown}" if setup else shown}, ensure_ascii=False),
            id=row.get("id"),
            task=row.get("task", "code"),
            used=frozenset({"id", "task", question, "test_list", "test_setup_code", "test_imports"}),
        )
