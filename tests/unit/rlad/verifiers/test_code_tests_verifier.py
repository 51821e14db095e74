"""Verdicts on programs in responses, which are run against tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from actors.verifier.killable_process import Judge
from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError
from rlad.verifiers import Verifier, build_verifier

VERIFIER = build_verifier({"name": "code_tests", "timeout_s": 8.0, "cpu_s": 1, "memory_mib": 256})
C, W, U, T = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.TIMEOUT
SUMS = json.dumps([{"input": "1 2\n", "output": "3"}, {"input": "20 22\n", "output": "42\n"}])
ADD = json.dumps({"asserts": "assert add(1, 2) == 3\nassert add(20, 22) == 42"})


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{code}\n```\nIt adds."


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print(sum(map(int, input().split())))", C),
        ("a, b = map(int, input().split())\nprint(a + b, ' ')\nprint()", C),
        ("print(3)", W),
        ("print('3\\n3')", W),
        ("print(' ', sum(map(int, input().split())))", W),
        ("print(sum(map(int, input().split())))\nraise ValueError", W),
        ("print(sum(map(int, input().split())))\nimport sys; sys.exit(1)", W),
        ("filled = bytearray(1 << 30)", W),
        ("while True: pass", T),
        ("print(sum(map(int, input().split())", U),
        ("the sum of a and b", U),
        ("a\x00b", U),
    ],
)
def test_program_that_reads_input_must_pass_every_test(code: str, outcome: Outcome) -> None:
    verdict = VERIFIER.verify(fenced(code), SUMS)
    assert verdict.outcome == outcome
    assert verdict.reward == float(outcome == C)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def add(a, b): return a + b", C),
        ("add = lambda a, b: a + b\nif __name__ == '__main__':\n    print('as a program too')", C),
        ("def add(a, b): return 3", W),
        ("def sub(a, b): return a - b", W),
        ("import sys; sys.exit(0)", W),
        ("import os; os._exit(0)", W),
        ("def add(a, b):\n    while True: pass", T),
    ],
)
def test_program_is_tested_by_assertions(code: str, outcome: Outcome) -> None:
    assert VERIFIER.verify(fenced(code), ADD).outcome == outcome


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (fenced("def add(a, b): return 0") + "\nNo:\n" + fenced("def add(a, b): return a + b"), C),
        (fenced("def add(a, b): return a + b") + "\nNo:\n" + fenced("def add(a, b): return 0"), W),
        (fenced("def add(a, b): return a + b") + "\n```text\nexample\n```", C),
        (fenced("def add(a, b): return a + b", "Python3"), C),
        (fenced("def add(a, b): return a + b", ""), C),
        (fenced("def add(a, b): return a + b", "rust"), U),
        ("<think>" + fenced("def add(a, b): return a + b") + "</think> I cannot.", U),
        ("<think>" + fenced("def add(a, b): return a + b"), U),
        ("def add(a, b): return a + b", U),
        ("```python\ndef add(a, b): return a + b", U),
    ],
)
def test_last_python_block_after_the_thinking_is_run(response: str, outcome: Outcome) -> None:
    assert VERIFIER.verify(response, ADD).outcome == outcome


def test_program_that_never_ends_is_killed() -> None:
    verdict = build_verifier({"name": "code_tests", "timeout_s": 1.0}).verify(
        fenced("import time\ntime.sleep(100)"), SUMS
    )
    assert (verdict.outcome, verdict.reward) == (T, 0.0)


def test_wall_time_covers_all_tests_together() -> None:
    tests = json.dumps([{"input": "", "output": ""}] * 20)
    verifier = build_verifier({"name": "code_tests", "timeout_s": 1.0})
    assert verifier.verify(fenced("import time\ntime.sleep(0.3)"), tests).outcome == T


@pytest.mark.parametrize("answer", ["", "3", "[]", '[{"input": "1"}]', '{"asserts": ""}', '{"tests": "assert True"}'])
def test_answer_without_tests_is_a_data_error(answer: str) -> None:
    with pytest.raises(DataError, match="programming task must be JSON"):
        VERIFIER.verify(fenced("pass"), answer)


def test_invalid_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        build_verifier({"name": "code_tests", "timeout_s": 0})


def build_code_tests() -> Mapping[str, Verifier]:
    return {"code": VERIFIER}


def test_verdicts_are_the_same_in_a_verifier_process() -> None:
    judge = Judge(build_code_tests, timeout_s=30)
    texts = [
        fenced("def add(a, b): return a + b"),
        fenced("def add(a, b): return 3"),
        fenced("while True: pass"),
        "no code",
    ]
    try:
        assert [judgement.outcome for judgement in judge.judge("code", texts, ADD)] == [C, W, T, U]
        [failed] = judge.judge("code", texts[:1], "no tests")
    finally:
        judge.close()
    assert (failed.outcome, (failed.problem or "").partition(":")[0]) == (Outcome.ERROR, "DataError")
