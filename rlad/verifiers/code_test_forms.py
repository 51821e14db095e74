"""Tests of programming tasks in the forms of public data sets, read as inputs with outputs or as assertions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from rlad.verifiers.code_test_names import assumed_imports

__all__ = ["CodeTests", "assumed_imports", "outputs_equal", "read_tests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """Tests of one task: inputs with outputs, calls with results, or assertions.

    Attributes:
        inputs: Standard input of each test.
        outputs: Expected standard output of each test.
        asserts: Python source that uses the program's functions; None without assertions.
        function: Name of the function that is tested by `calls`, or that is the entry point of `asserts`; None
            otherwise.
        calls: Arguments and expected result of each call. JSON has no tuples, and some sets wrap the result in a list.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    asserts: str | None = None
    function: str | None = None
    calls: tuple[tuple[list[Any], Any], ...] = ()


def read_tests(answer: str) -> CodeTests | None:
    """Return the tests of a prompt's answer; None if it has none in a known form."""
    try:
        tests = json.loads(answer)
        if isinstance(tests, str):  # Some data sets encode twice.
            tests = json.loads(tests)
    except (ValueError, RecursionError):
        return None
    if isinstance(tests, list):
        return _from_list(tests)
    return _from_mapping(tests) if isinstance(tests, dict) else None


def _from_list(tests: list[Any]) -> CodeTests | None:
    if not tests:
        return None
    if all(isinstance(test, str) and test.strip() for test in tests):
        return CodeTests(asserts="\n".join(tests))
    if not all(isinstance(test, dict) and {"input", "output"} <= test.keys() for test in tests):
        return None
    name = next((name for test in tests if (name := _function_name(test))), None)
    if name:
        return _calls(name, [_arguments(test["input"]) for test in tests], [_value(test["output"]) for test in tests])
    return _programs([test["input"] for test in tests], [test["output"] for test in tests])


def _from_mapping(tests: dict[str, Any]) -> CodeTests | None:
    asserts = tests.get("asserts")
    if isinstance(asserts, str) and asserts and len(tests) == 1:
        return CodeTests(asserts=asserts)
    listed = tests.get("test_list")
    if isinstance(listed, list) and listed and all(isinstance(test, str) for test in listed):
        setup = tests.get("test_setup_code") or "\n".join(tests.get("test_imports") or [])
        return CodeTests(asserts="\n".join([setup, *listed]))
    check, entry = tests.get("test"), tests.get("entry_point")
    if isinstance(check, str) and isinstance(entry, str) and entry.isidentifier():
        return CodeTests(asserts=f"{check}\ncheck({entry})", function=entry)
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        return None
    name = _function_name(tests)
    if name:
        return _calls(name, [_arguments(arguments) for arguments in inputs], [_value(output) for output in outputs])
    return _programs(inputs, outputs)


def _function_name(test: dict[str, Any]) -> str | None:
    """Return the name of the function to call; None for a program that reads standard input."""
    metadata = test.get("metadata")
    for source in (test, metadata if isinstance(metadata, dict) else {}):
        for key in ("fn_name", "func_name"):
            name = source.get(key)
            if isinstance(name, str) and name.isidentifier():
                return name
    return None


def _programs(inputs: list[Any], outputs: list[Any]) -> CodeTests | None:
    texts = [_text(value) for value in (*inputs, *outputs)]
    if any(text is None for text in texts):
        return None
    known = [text or "" for text in texts]
    return CodeTests(inputs=tuple(known[: len(inputs)]), outputs=tuple(known[len(inputs) :]))


def _text(value: Any) -> str | None:
    """Return a value as text: a list of lines is joined, a number is printed."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        lines = [_text(item) for item in value]
        return None if None in lines else "\n".join(line or "" for line in lines)
    if isinstance(value, (bool, int, float)):
        return str(value)
    return None


def _arguments(value: Any) -> list[Any]:
    """Return the arguments of a call. A text has one JSON value a line."""
    if isinstance(value, str):
        return [_value(line) for line in value.split("\n") if line.strip()]
    return value if isinstance(value, list) else [value]


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _calls(name: str, arguments: list[list[Any]], results: list[Any]) -> CodeTests:
    return CodeTests(function=name, calls=tuple(zip(arguments, results, strict=True)))


def outputs_equal(given: str, expected: str) -> bool:
    """Compare outputs line by line, without trailing white space. Decimals may differ by 1e-6, absolute or relative."""
    given_lines, expected_lines = _lines(given), _lines(expected)
    return len(given_lines) == len(expected_lines) and all(map(_lines_equal, given_lines, expected_lines))


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.rstrip().splitlines()]


def _lines_equal(given: str, expected: str) -> bool:
    if given == expected:
        return True
    pairs = re.split(r"(\s+)", given), re.split(r"(\s+)", expected)
    return len(pairs[0]) == len(pairs[1]) and all(map(_tokens_equal, *pairs))


def _tokens_equal(given: str, expected: str) -> bool:
    if given == expected:
        return True
    # An expected integer has to be printed exactly.
    if not re.fullmatch(r"-?\d*\.\d+(?:[eE][-+]?\d+)?", expected) or not re.fullmatch(
        r"-?\d*\.?\d+(?:[eE][-+]?\d+)?", given
    ):
        return False
    return abs(float(given) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
