"""DeepCoder, AceCode and others: a problem with a list of tests in one column."""

from __future__ import annotations

import json
from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt
from rlad.data.layouts.programming.code_answers import answer_of_tests, with_starter_code
from rlad.data.layouts.values import parsed
from rlad.errors import DataError

_QUESTIONS = ("problem", "question", "prompt", "description")
_TESTS = ("tests", "test_cases", "test_list", "unit_tests")


class ListedTestsLayout:
    """A question with tests: a list of `{input, output}`, a mapping of `inputs` and `outputs`, or a list of asserts.

    The first assert is shown, because it names the function.
    """

    name = "problem and tests"

    def matches(self, row: Columns) -> bool:
        tests = _first(row, _TESTS)
        return "answer" not in row and _first(row, _QUESTIONS) is not None and _is_known(tests and parsed(row[tests]))

    def read(self, row: Columns) -> RawPrompt:
        question, tests = _first(row, _QUESTIONS), _first(row, _TESTS)
        if question is None or tests is None:
            raise DataError("missing problem or tests; add them, or set `invalid_rows: drop`")
        found, text = parsed(row[tests]), with_starter_code(row[question], row.get("starter_code"))
        if isinstance(found, list) and found and _is_asserts(found) and isinstance(text, str):
            text = f"{text}\nYour code should pass tests such as:\n```python\n{found[0].strip()}\n```"
        return RawPrompt(
            prompt=text,
            answer=_answer(found),
            id=row.get("id"),
            task=row.get("task", "code"),
            used=frozenset({"id", "task", question, tests}),
        )


def _first(row: Columns, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _is_known(tests: Any) -> bool:
    if isinstance(tests, dict):
        return {"inputs", "outputs"} <= tests.keys()
    return isinstance(tests, list) and bool(tests) and (_is_cases(tests) or _is_asserts(tests))


def _is_cases(tests: list[Any]) -> bool:
    return all(isinstance(test, dict) and {"input", "output"} <= test.keys() for test in tests)


def _is_asserts(tests: list[Any]) -> bool:
    return all(isinstance(test, str) and test.lstrip().startswith("assert") for test in tests)


def _answer(tests: Any) -> str:
    if isinstance(tests, list) and tests and _is_asserts(tests):
        return json.dumps({"asserts": "\n".join(tests)}, ensure_ascii=False)
    if isinstance(tests, list) and tests and _is_cases(tests):
        if any(test.get("testtype") == "functional" for test in tests):
            raise DataError(
                "the tests call a function whose name the row does not hold; leave out such rows with "
                "`invalid_rows: drop`"
            )
        tests = {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
    return answer_of_tests(tests)
