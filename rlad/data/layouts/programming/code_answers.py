"""Tests of programs as the answers that the verifier `code_tests` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlad.data.layouts.values import parsed
from rlad.errors import DataError


def answer_of_tests(tests: Any) -> str:
    """Return the answer of a program's tests.

    Args:
        tests: Mapping, or its JSON text, with `inputs` and `outputs`, and with `fn_name` for tests that call a
            function. Inputs and outputs of programs that read standard input become `[{"input", "output"}]`; other
            tests stay as they are.

    Raises:
        DataError: There are no tests, or the numbers of inputs and outputs differ.
    """
    tests = parsed(tests)
    if not isinstance(tests, Mapping) or not tests:
        raise DataError(f"missing tests: expected a mapping with inputs and outputs, got {_short(tests)}")
    if "inputs" not in tests or "outputs" not in tests or tests.get("fn_name"):
        return json.dumps(tests, ensure_ascii=False)
    inputs, outputs = tests["inputs"], tests["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise DataError(f"missing tests: expected as many inputs as outputs and at least one, got {_short(tests)}")
    cases = [{"input": _text(fed), "output": _text(expected)} for fed, expected in zip(inputs, outputs, strict=True)]
    return json.dumps(cases, ensure_ascii=False)


def with_starter_code(question: Any, starter_code: Any) -> Any:
    """Return a question with the code that the solution must begin with."""
    if not isinstance(starter_code, str) or not starter_code.strip() or not isinstance(question, str):
        return question
    return f"{question.rstrip()}\n\nBegin with this code:\n```python\n{starter_code.rstrip()}\n```"


def _text(value: Any) -> str:
    """Return standard input or output, which some data sets store as a list of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
