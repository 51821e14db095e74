"""Verdicts on chosen letters, decided by hand."""

from __future__ import annotations

import pytest

from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError
from rlad.verifiers import build_verifier

VERIFIER = build_verifier({"name": "multiple_choice"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("<answer>B</answer>", C),
        ("<answer> (b) </answer>", C),
        ("<answer>B) Paris</answer>", C),
        ("<answer>B. A city, and a large one</answer>", C),
        ("<answer>Option B</answer>", C),
        ("<answer>The answer is (B)</answer>", C),
        ("<answer>C</answer>", W),
        ("<answer>B</answer> no: <answer>C</answer>", W),
        ("<answer>E</answer>", U),
        ("<answer>B or C</answer>", U),
        ("<answer>A, B</answer>", U),
        ("<answer>(A) and (B)</answer>", U),
        ("<answer>Paris</answer>", U),
        ("<answer>Because it is so</answer>", U),
        ("<answer></answer>", U),
        (r"\boxed{A} or rather \boxed{B}", C),
        (r"\boxed{\text{(B)}}", C),
        (r"\boxed{\textbf{(B)}\ 12}", C),
        (r"\boxed{C}. The answer is (B).", W),
        (r"\boxed{A,B}", U),
        ("The answer is (B).", C),
        ("the answer is **B**", C),
        ("**Answer:** B", C),
        ("Answer: B) Paris", C),
        ("The correct answer is option B, because A is wrong.", C),
        ("The answer is (A)? No, the answer is (B).", C),
        ("The answer is B\n\nI looked at C.", C),
        ("The answer is (C).", W),
        ("The answer is B or C.", U),
        ("The answer is a matter of taste.", U),
        ("The answer is A's brother.", U),
        ("The answer is Because.", U),
        ("B", C),
        (" (B). ", C),
        ("I like B", U),
        ("<think>The answer is (A)</think> The answer is (B)", C),
        ("<think>The answer is (B)", U),
        ("", U),
    ],
)
def test_response_chooses_one_letter_or_none(response: str, outcome: Outcome) -> None:
    verdict = VERIFIER.verify(response, "B")
    assert verdict.outcome == outcome
    assert verdict.reward == float(outcome == C)


def test_number_of_options_determines_the_letters() -> None:
    ten, two = (build_verifier({"name": "multiple_choice", "options": options}) for options in (10, 2))
    assert ten.verify("<answer>J</answer>", "j").outcome == C
    assert ten.verify("<answer>K</answer>", "J").outcome == U
    assert two.verify("<answer>C</answer>", "B").outcome == U
    for answer in ("C", "AB", "", "1"):
        with pytest.raises(DataError, match="one letter of AB"):
            two.verify("<answer>A</answer>", answer)
    with pytest.raises(ConfigError, match="options"):
        build_verifier({"name": "multiple_choice", "options": 27})


@pytest.mark.parametrize(
    ("response", "letter"),
    [("the answer is (b)", "B"), (r"\boxed{B}", "B"), ("<answer>E</answer>", None), ("B or C", None)],
)
def test_equal_choices_have_one_canonical_form(response: str, letter: str | None) -> None:
    assert VERIFIER.answer_of(response) == letter  # type: ignore[attr-defined]
