"""Verdicts on countdown expressions, decided by hand."""

from __future__ import annotations

import json

import pytest

from rlad.contracts import Outcome
from rlad.errors import DataError
from rlad.verifiers import build_verifier

VERIFIER = build_verifier({"name": "countdown"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    ("expression", "numbers", "target", "outcome"),
    [
        ("(3 + 4) * 6", [3, 4, 6], 42, C),
        ("6*(4+3)", [3, 4, 6], 42, C),
        ("(3 + 4) * 6 = 42", [3, 4, 6], 42, C),
        ("[3 + 4] × 6", [3, 4, 6], 42, C),
        ("8 / (3 - 8/3)", [3, 3, 8, 8], 24, C),  # exact only in rational numbers; 23.999999999999989 in floating point
        ("1/3 + 1/3 + 1/3", [1, 1, 1, 3, 3, 3], 1, C),
        ("-(3 - 8)", [3, 8], 5, C),
        ("7", [7], 7, C),
        ("3 + 4 + 6", [3, 4, 6], 42, W),
        ("(3 + 4) * 6 = 41", [3, 4, 6], 42, W),
        ("42", [3, 4, 6], 42, W),
        ("6 * 7", [3, 4, 6], 42, W),
        ("3 + 4", [3, 4, 6], 7, W),  # not all numbers
        ("3 + 4 + 3 - 3", [3, 4], 7, W),  # one number more than once
        ("3 / (4 - 4)", [3, 4, 4], 42, W),
        ("34 + 6", [3, 4, 6], 40, W),  # digits must not be joined
        ("3 ** 4", [3, 4], 81, U),
        ("9 // 2", [9, 2], 4, U),
        ("(3 + 4 * 6", [3, 4, 6], 42, U),
        ("3 + 4.0", [3, 4], 7, U),
        ("three plus four", [3, 4], 7, U),
        ("__import__('os').system('true')", [3, 4], 7, U),
        ("(3)(4)", [3, 4], 12, C),
        ("3 + 4 = 7 = 7", [3, 4], 7, U),
        ("1_0 + 3", [10, 3], 13, U),
        ("", [3], 3, U),
        ("-" * 490 + "3", [3], 3, C),
        ("-" * 1990 + "3", [3], 3, U),
        ("(3" + "+3" * 240 + ")", [3] * 241, 723, C),
        ("(" * 900 + "3" + ")" * 900, [3], 3, U),
        ("9" * 10_000, [3], 3, U),
    ],
)
def test_each_number_is_used_once_and_the_value_is_exact(
    expression: str, numbers: list[int], target: int, outcome: Outcome
) -> None:
    verdict = VERIFIER.verify(
        f"<think>hm</think> So <answer>{expression}</answer>.", json.dumps({"numbers": numbers, "target": target})
    )
    assert verdict.outcome == outcome
    assert verdict.reward == float(outcome == C)


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("<answer>3 * 4</answer> no, <answer>3 + 4</answer>", C),
        ("<answer>3 + 4</answer> no, <answer>3 * 4</answer>", W),
        ("<think><answer>3 + 4</answer></think> none", U),
        ("<think><answer>3 + 4</answer>", U),
        ("3 + 4", U),
    ],
)
def test_last_answer_block_after_the_thinking_counts(response: str, outcome: Outcome) -> None:
    assert VERIFIER.verify(response, '{"numbers": [3, 4], "target": 7}').outcome == outcome


@pytest.mark.parametrize(
    "answer", ["", "7", '{"numbers": [3, 4]}', '{"numbers": [], "target": 7}', '{"numbers": [3.5], "target": 7}']
)
def test_malformed_puzzle_is_a_data_error(answer: str) -> None:
    with pytest.raises(DataError, match="countdown puzzle must be JSON"):
        VERIFIER.verify("<answer>7</answer>", answer)
