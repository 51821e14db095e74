"""Mathematical answers are compared as mathematics."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rlad.contracts import Outcome
from rlad.errors import DataError
from rlad.verifiers import build_verifier

VERIFIER = build_verifier({"name": "math_answer"})


@pytest.mark.parametrize(
    ("response", "answer", "outcome"),
    [
        (r"so the sum is \boxed{97}.", "97", Outcome.CORRECT),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", Outcome.CORRECT),
        (r"\boxed{0.5}", r"\frac{1}{2}", Outcome.CORRECT),
        (r"first \boxed{97}, no: \boxed{98}", "97", Outcome.WRONG),
        (r"<think>\boxed{97}</think> it is \boxed{96}", "97", Outcome.WRONG),
        ("it is clear", "97", Outcome.UNPARSEABLE),
        ("", "97", Outcome.UNPARSEABLE),
    ],
)
def test_answers_are_compared_as_mathematics(response: str, answer: str, outcome: Outcome) -> None:
    verdict = VERIFIER.verify(response, answer)
    assert verdict.outcome == outcome
    assert verdict.reward == float(outcome == Outcome.CORRECT)


def test_an_expected_answer_that_is_no_mathematics_is_a_fault_of_the_data() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        VERIFIER.verify(r"\boxed{1}", "")


def test_real_answers_boxed_in_prose_earn_the_reward_and_their_neighbours_do_not(shared_data: Path) -> None:
    lines = (shared_data / "aime_2021_2024.jsonl").read_text().splitlines()[::6]
    for line in lines:
        answer = json.loads(line)["answer"]
        assert VERIFIER.verify(f"Adding both cases gives $\\boxed{{{answer}}}$ as required.", answer).reward == 1.0
        assert VERIFIER.verify(f"Adding both cases gives $\\boxed{{{int(answer) + 1}}}$ as required.", answer).reward == 0.0


def test_the_verdict_is_the_same_off_the_main_thread() -> None:
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(VERIFIER.verify(r"\boxed{97}", "97")))
    thread.start()
    thread.join()
    assert verdicts[0].outcome == Outcome.CORRECT


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{\frac{2}{4}}", "1/2"),
        (r"\boxed{0.5}", "1/2"),
        (r"\boxed{50\%}", "1/2"),
        (r"\boxed{\sqrt{8}}", "2*sqrt(2)"),
        (r"\boxed{1+x^2}", "x**2 + 1"),
        (r"<think>\boxed{97}</think> it is \boxed{96}", "96"),
        ("it is clear", None),
    ],
)
def test_equal_answers_have_one_spelling(response: str, answer: str | None) -> None:
    assert VERIFIER.answer_of(response) == answer
