"""Notations of choices and countdown expressions that models use."""

from __future__ import annotations

import json

import pytest

from rlad.contracts import Outcome
from rlad.verifiers import build_verifier

CHOICE = build_verifier({"name": "multiple_choice"})
COUNTDOWN = build_verifier({"name": "countdown"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("Option B is correct.", C),
        ("Thus B is correct.", C),
        ("Choice B is the right answer.", C),
        ("The best choice is B.", C),
        ("The correct option is **(B)**.", C),
        ("The answer must be B.", C),
        ("**B**", C),
        ("Answer: [B]", C),
        ("**Answer:**\n\nB", C),
        ("答案：B", C),
        ("【答案】B", C),
        ("正确答案是 (B)", C),
        ("正确答案为：\uff22", C),
        ("故选 B。", C),
        (r"We have \boxed{E = 3.2}, so it matches." + "\n\nAnswer: B", C),
        (r"\boxed{A} Answer: B", W),
        ("Option A is correct.", W),
        ("Option B is not correct. The answer is A.", W),
        ("Option B is wrong, so option C is the correct one.", W),
        (r"\boxed{AB} The answer is B", U),
        ("The answer is A and B.", U),
        ("Option B is not correct.", U),
        ("Option B is incorrect.", U),
        ("The correct option is not B.", U),
        ("Neither A nor B is correct", U),
        ("It is not the case that B is correct", U),
        ("If option B is correct, then 1=2.", U),
    ],
)
def test_choice_is_read_from_statements(response: str, outcome: Outcome) -> None:
    assert CHOICE.verify(response, "B").outcome == outcome


@pytest.mark.parametrize("answer", ["(B)", "B.", "b", "B)"])
def test_punctuation_around_the_expected_letter_is_ignored(answer: str) -> None:
    assert CHOICE.verify("The answer is B", answer).outcome == C


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        (r"(3+4)\cdot 6", C),
        (r"$(3+4)\times 6$", C),
        (r"\( (3+4) \times 6 = 42 \)", C),
        (r"$\boxed{(3+4)\times6=42}$", C),
        (r"\left(3+4\right)\times 6", C),
        (r"\frac{(3+4)\times 6}{1}", W),
        ("(3+4) x 6", C),
        ("(3+4)*6.", C),
        ("6(3+4)", C),
        ("```\n(3+4)*6\n```", C),
        ("**(3+4)*6**", C),
        (r"(3+4)\times 6 = 43", W),
        (r"\frac{3+4}{6}", W),
        (r"\sqrt{3}", U),
        ("3 4 6", U),
    ],
)
def test_countdown_expression_may_be_latex_or_markdown(expression: str, outcome: Outcome) -> None:
    answer = json.dumps({"numbers": [3, 4, 6], "target": 42})
    assert COUNTDOWN.verify(f"<answer>{expression}</answer>", answer).outcome == outcome


def test_nested_fractions_are_divisions() -> None:
    answer = json.dumps({"numbers": [3, 4, 6, 2], "target": 1})
    assert COUNTDOWN.verify(r"<answer>\frac{\frac{6}{3}\times 2}{4}</answer>", answer).outcome == C
