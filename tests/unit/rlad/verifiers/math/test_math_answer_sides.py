"""Which side of a comparison is the expected answer, which words are words, and which text is marked as the answer."""

from __future__ import annotations

import pytest

from rlad.contracts import Outcome
from rlad.verifiers import build_verifier

VERIFIER = build_verifier({"name": "math_answer"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    ("given", "expected", "outcome"),
    [
        ("2x + z = 1", "1", C),  # a response may write the value as the end of an equation
        ("1", "2x + z = 1", W),  # the value of one side is no equation
        ("x^2 + y^2 = 25", "25", C),
        ("25", "x^2 + y^2 = 25", W),
        (r"\log x", r"\ln x", C),  # a response may write the natural logarithm without a base
        (r"\ln x", r"\log x", W),  # where log is expected, its base is not e
    ],
)
def test_expected_and_given_answer_are_not_interchangeable(given: str, expected: str, outcome: Outcome) -> None:
    assert VERIFIER.verify(f"\\boxed{{{given}}}", expected).outcome == outcome


@pytest.mark.parametrize(
    ("given", "expected", "outcome"),
    [
        ("ba", "ab", C),  # two letters are variables, and their product commutes
        ("b", "ab", W),
        ("tac", "cat", W),  # three letters are a word
        ("cat", "cat", C),
    ],
)
def test_two_letters_are_variables_and_three_are_a_word(given: str, expected: str, outcome: Outcome) -> None:
    assert VERIFIER.verify(f"\\boxed{{{given}}}", expected).outcome == outcome


def test_answer_block_marks_its_text_as_the_answer() -> None:
    """Within the tags, other words are a wrong answer; in running text they are no answer."""
    assert VERIFIER.verify("<answer>Tuesday</answer>", "Monday").outcome == W
    assert VERIFIER.verify("it may be Tuesday", "Monday").outcome == U
    assert VERIFIER.answer_of("<answer>East</answer>") == "east"
    assert VERIFIER.answer_of("it may lie in the East") is None
