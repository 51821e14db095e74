"""Tests of programming tasks in the forms of public data sets."""

from __future__ import annotations

import json

import pytest

from rlad.contracts import Outcome
from rlad.verifiers import build_verifier
from rlad.verifiers.code_test_forms import assumed_imports, outputs_equal, read_tests

VERIFIER = build_verifier({"name": "code_tests", "timeout_s": 20.0, "cpu_s": 2, "memory_mib": 256})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE
ADD = "def add(a, b): return a + b"
SOLUTION = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b"
SUM = "print(sum(map(int, input().split())))"


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


@pytest.mark.parametrize(
    ("code", "tests", "outcome"),
    [
        (ADD, ["assert add(1, 2) == 3", "assert add(2, 2) == 4"], C),
        (ADD, ["assert add(1, 2) == 3", "assert add(2, 2) == 5"], W),
        (ADD, {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": "import math"}, C),
        (ADD, {"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"}, C),
        (ADD, {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}, C),
        (ADD, {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 8]}, W),
        (ADD, {"fn_name": "add", "inputs": [[0.1, 0.2]], "outputs": [[0.3]]}, C),
        (SOLUTION, {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}, C),
        (SOLUTION, [{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}], C),
        (SUM, {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}, C),
        (SUM, {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "8\n"]}, W),
        (SUM, {"inputs": [["1 2"]], "outputs": [["3"]]}, C),
        (SUM, [{"input": "1 2", "output": 3, "type": "stdin_stdout"}], C),
        (SUM, [{"input": "1 2\r\n", "output": "3\r\n", "testtype": "stdin"}], C),
    ],
)
def test_forms_of_public_data_sets_are_run(code: str, tests: object, outcome: Outcome) -> None:
    assert VERIFIER.verify(fenced(code), json.dumps(tests)).outcome == outcome


@pytest.mark.parametrize(
    "tests", [{"inputs": [], "outputs": []}, {"inputs": ["1"], "outputs": []}, [1], {"test_list": []}]
)
def test_incomplete_tests_are_not_read(tests: object) -> None:
    assert read_tests(json.dumps(tests)) is None


def test_common_imports_are_assumed_unless_the_program_defines_the_name() -> None:
    assert assumed_imports("def f(a: List[int]): return heapq.nlargest(1, a)").splitlines() == [
        "import heapq",
        "from typing import List",
    ]
    assert assumed_imports("import heapq\ndef gcd(a, b): return a\nheapq.heappop(gcd(1, 2))") == ""


@pytest.mark.parametrize(
    ("given", "expected", "is_equal"),
    [
        ("0.3333333333", "0.333333", True),
        ("0.3334", "0.333333", False),
        ("1000000.5 x", "1000000.4 x", True),
        ("3.0", "3", False),
        ("4", "3.0", False),
        ("nan", "0.5", False),
        ("1  2", "1 2", False),
    ],
)
def test_only_expected_decimals_have_a_tolerance(given: str, expected: str, is_equal: bool) -> None:
    assert outputs_equal(given, expected) == is_equal


def test_many_tests_share_one_interpreter() -> None:
    verifier = build_verifier({"name": "code_tests", "timeout_s": 120.0, "cpu_s": 2, "memory_mib": 256})
    tests = [{"input": f"{number} 1", "output": str(number + 1)} for number in range(60)]
    assert verifier.verify(fenced(SUM), json.dumps(tests)).outcome == C  # 60 interpreters would need more than 2 s
    tests[-1]["output"] = "0"
    assert verifier.verify(fenced(SUM), json.dumps(tests)).outcome == W


def test_runs_of_a_program_share_no_files() -> None:
    code = "import os\nprint(sorted(os.listdir()))\nopen('state', 'w').write('1')"
    assert VERIFIER.verify(fenced(code), json.dumps([{"input": "", "output": "[]"}] * 2)).outcome == C


@pytest.mark.parametrize(
    "response",
    [
        "1. Solution:\n\n   ```python\n   a, b = map(int, input().split())\n   print(a + b)\n   ```\n",
        "~~~python\n" + SUM + "\n~~~",
        fenced(SUM).replace("\n", "\r\n"),
    ],
)
def test_indented_tilde_and_crlf_fences_are_read(response: str) -> None:
    assert VERIFIER.verify(response, json.dumps([{"input": "1 2", "output": "3"}])).outcome == C
