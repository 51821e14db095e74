"""Verdicts on mathematical answers, which are compared as mathematics."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from actors.verifier.killable_process import Judge
from rlad.contracts import Outcome
from rlad.errors import DataError
from rlad.verifiers import Verifier, build_verifier

VERIFIER = build_verifier({"name": "math_answer"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE

BOXES = [
    (r"so the sum is \boxed{97}.", "97", C),
    (r"\boxed{97}", "96", W),
    (r"\[ \boxed{5} \]", "5", C),
    (r"\fbox{5}", "5", C),
    (r"\boxed 5", "5", C),
    (r"\boxed{073}", "73", C),
    (r"\boxed{73}", "073", C),
    (r"\boxed{}", "5", U),
    (r"\boxed{m+n = 97}", "97", C),
    (r"\boxed{97 = 97}", "96", W),
    (r"\boxed{97}. Check: 97-1=96.", "97", C),
    (r"the final answer is $3$. Wait. \boxed{4}", "4", C),
    (r"the final answer is $3$. Wait. \boxed{4}", "3", W),
]
LAST_BOX_COUNTS = [
    (r"first \boxed{97}, no: \boxed{98}", "97", W),
    (r"first \boxed{97}, no: \boxed{98}", "98", C),
    (r"$\boxed{1}$ ... and finally $\boxed{\frac{4}{2}}$.", "2", C),
    (r"$\boxed{1}$ ... and finally $\boxed{2}$.", "1", W),
    (r"\boxed{1}, \boxed{2}, \boxed{3}", "1", W),
    (r"<think>\boxed{97}</think> it is \boxed{96}", "97", W),
    (r"it is \boxed{97}. <think>or not", "97", U),
    (r"<answer>\boxed{5}</answer>, and not \boxed{6}", "5", C),
]
ALTERNATIVES = [
    (r"\boxed{81}", "080 or 081 (both were accepted)", C),
    (r"\boxed{82}", "080 or 081 (both were accepted)", W),
    (r"\boxed{80 or 81}", "080 or 081 (both were accepted)", W),
    ("hm", "080 or 081 (both were accepted)", U),
]
HEDGES = [
    (r"\boxed{1,2,3,4}", "2", W),
    (r"\boxed{1 or 2 or 3}", "2", W),
    (r"\boxed{5 \text{ or } 6}", "5", W),
    (r"\boxed{x}", "5", W),
    ("the answer is 12 or 13", "12", W),
    ("The answer is {1, 2}", "2", W),
]
NUMBERS = [
    (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", C),
    (r"\boxed{0.5}", r"\frac{1}{2}", C),
    (r"\boxed{\frac34}", "0.75", C),
    (r"\boxed{3/4}", r"\dfrac{3}{4}", C),
    (r"\boxed{-\frac{1}{2}}", r"\frac{-1}{2}", C),
    (r"\boxed{1\frac{1}{2}}", r"\frac32", C),
    (r"\boxed{0.33}", r"\frac13", W),
    (r"\boxed{\pi}", "3.14", W),
    (r"\boxed{-5}", "5", W),
    (r"\boxed{97.4}", "97", W),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", C),
    (r"\boxed{2^{10}}", "1024", C),
    (r"\boxed{1.5\times10^3}", "1500", C),
    (r"\boxed{1000000008}", "1000000007", W),
    (r"\boxed{x^2+2x+1}", "(x+1)^2", C),
    (r"\boxed{y = 2x+3}", "2x+3", C),
    (r"\boxed{1+2i}", "1+2i", C),
]
THOUSANDS = [
    (r"\boxed{1,234}", "1234", C),
    (r"\boxed{1234}", "1,234", C),
    (r"\boxed{12{,}345}", "12345", C),
    (r"\boxed{12\,345}", "12345", C),
    (r"\boxed{1,\!234,\!567}", "1234567", C),
    (r"\boxed{12\,345}", "12346", W),
    (r"\boxed{1,234}", "1235", W),
    (r"\boxed{1,234}", "234", W),
    ("The answer is 1,234,567.", "1234567", C),
    ("**The answer is:** 1,234", "1234", C),
]
UNITS = [
    (r"\boxed{5\text{ cm}}", "5", C),
    (r"\boxed{5}\text{ cm}", "5", C),
    (r"\boxed{5 cm}", r"5\text{ cm}", C),
    (r"\boxed{5\,\mathrm{cm}^2}", "5", C),
    (r"\boxed{5}", r"5\text{ inches}", C),
    (r"\boxed{6\text{ cm}}", r"5\text{ cm}", W),
    (r"\boxed{90^\circ}", "90", C),
    (r"\boxed{90}", r"90^\circ", C),
    (r"\boxed{\$5.50}", "5.5", C),
    ("The answer is 5 cm.", "5", C),
]
PERCENT = [
    (r"\boxed{25\%}", r"25\%", C),
    (r"\boxed{25}", r"25\%", C),
    (r"\boxed{0.25}", r"25\%", C),
    (r"\boxed{25%}", "25%", C),
    (r"\boxed{25}\%", "0.25", C),
    (r"\boxed{26\%}", r"25\%", W),
    (r"\boxed{0.25}", "25", W),
    ("The answer is 25%.", r"25\%", C),
]
SETS = [
    (r"\boxed{\{1,2,3\}}", r"\{3,2,1\}", C),
    (r"\boxed{1, 2, 3}", "3,2,1", C),
    (r"\boxed{x=1 \text{ or } x=2}", "1,2", C),
    (r"\boxed{\pm 2}", r"\{-2,2\}", C),
    (r"\boxed{\{1,2\}}", r"\{1,3\}", W),
    (r"\boxed{1, 2}", "1,2,3", W),
    (r"\boxed{(1,2,3)}", "(3,2,1)", W),
    ("the answer is 12 or 13", r"\{12,13\}", C),
]
INTERVALS = [
    (r"\boxed{[0,1)}", "[0,1)", C),
    (r"\boxed{(0,1)}", "[0,1)", W),
    (r"\boxed{[0,1]}", "[0,1)", W),
    (r"\boxed{(-\infty,2)}", r"(-\infty, 3)", W),
    (r"\boxed{(-\infty,2]\cup[3,\infty)}", r"[3, \infty) \cup (-\infty, 2]", C),
    (r"\boxed{x \le 3}", r"(-\infty,3]", C),
    (r"\boxed{x < 3}", r"(-\infty,3]", W),
    (r"\boxed{2 < x < 3}", "(2,3)", C),
]
TEXT = [
    (r"\boxed{\text{Monday}}", "Monday", C),
    (r"\boxed{Monday}", r"\text{monday}", C),
    (r"\boxed{\text{Tuesday}}", "Monday", W),
    (r"\boxed{7}", "Monday", W),
    (r"\boxed{\text{seat}}", "east", W),
    (r"\boxed{seat}", "east", W),
    (r"\boxed{on}", "no", W),
    (r"\boxed{\text{the east}}", "east", C),
    (r"\boxed{\textbf{(C)}}", r"\text{(C)}", C),
    (r"\boxed{\textbf{(C)}}", "C", C),
    (r"\boxed{D}", "C", W),
    (r"\boxed{\text{undefined}}", r"\text{infinite}", W),
    (r"\boxed{\text{Monday}}", "5", W),
    ("The answer is Monday.", "Monday", C),
    ("The answer is Monday, the day after Sunday.", "Monday", C),
    ("The answer is no solution.", "no", W),
    ("The answer is Tuesday.", "Monday", W),
    ("Monday", "Monday", C),
    ("It may be Monday or Tuesday", "Monday", U),
]
PROSE = [
    ("the answer is 42", "42", C),
    ("We get 41, so the answer is 42, since 43 is too large.", "42", C),
    ("The answer is 42. I checked that 43 and 44 fail.", "42", C),
    ("The answer is 42.\n\nI checked 43.", "43", W),
    ("The answer is 3? No, the answer is 4.", "4", C),
    ("The answer is 3? No, the answer is 4.", "3", W),
    (r"The answer is \(\frac{1}{2}\).", "0.5", C),
    ("The answer is 3/4.", r"\frac{3}{4}", C),
    ("The answer is (2, 3)", "(2,3)", C),
    ("The answer is -5.", "-5", C),
    ("The answer is $42.50 per item.", "42.5", C),
    ("The answer is **97**.", "97", C),
    ("Answer: **5**", "5", C),
    ("#### 5", "5", C),
    ("<answer>5</answer>", "5", C),
    ("<answer>The answer is 5</answer>", "5", C),
    ("To find the answer we compute 12. Then 12+30=42.", "42", C),
    ("Therefore, m+n = 12 + 85 = 97.", "97", C),
    ("5", "5", C),
    ("it is clear", "97", U),
    ("", "97", U),
]


@pytest.mark.parametrize(
    ("response", "answer", "outcome"),
    [
        *BOXES,
        *LAST_BOX_COUNTS,
        *HEDGES,
        *ALTERNATIVES,
        *NUMBERS,
        *THOUSANDS,
        *UNITS,
        *PERCENT,
        *SETS,
        *INTERVALS,
        *TEXT,
        *PROSE,
    ],
)
def test_answers_are_compared_as_mathematics(response: str, answer: str, outcome: Outcome) -> None:
    verdict = VERIFIER.verify(response, answer)
    assert verdict.outcome == outcome
    assert verdict.reward == float(outcome == C)


@pytest.mark.parametrize("answer", ["", "...", "$$"])
def test_unparseable_expected_answer_is_a_data_error(answer: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        VERIFIER.verify(r"\boxed{1}", answer)


def build_math() -> Mapping[str, Verifier]:
    return {"math": build_verifier({"name": "math_answer"})}


def test_real_answers_in_prose_get_the_reward_and_500_wrong_ones_do_not(aime_responses: list[Any]) -> None:
    assert sum(not response.is_correct for response in aime_responses) == 500
    misjudged = [
        each
        for each in aime_responses
        if VERIFIER.verify(each.text, each.answer).outcome != (C if each.is_correct else W)
    ]
    assert not misjudged


def test_verdicts_are_the_same_in_concurrent_threads() -> None:
    cases = [*NUMBERS, *SETS, *INTERVALS, *PROSE] * 3
    random.Random(0).shuffle(cases)

    def judge(case: tuple[str, str, Outcome]) -> Outcome:
        assert threading.current_thread() is not threading.main_thread()
        return VERIFIER.verify(case[0], case[1]).outcome

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(judge, cases)) == [outcome for _, _, outcome in cases]


def test_verdicts_are_the_same_in_concurrent_verifier_processes(aime_responses: list[Any]) -> None:
    responses = aime_responses[::7]
    judges = [Judge(build_math, timeout_s=10) for _ in range(3)]

    def judge_all(judge: Judge) -> list[float]:
        return [judge.judge("math", [response.text], response.answer)[0].reward for response in responses]

    with ThreadPoolExecutor(len(judges)) as threads:
        judged = list(threads.map(judge_all, judges))
    for judge in judges:
        judge.close()
    assert judged == [[float(response.is_correct) for response in responses]] * 3


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{\frac{2}{4}}", "1/2"),
        (r"\boxed{0.5}", "1/2"),
        (r"\boxed{50\%}", "1/2"),
        (r"\boxed{\sqrt{8}}", "2*sqrt(2)"),
        (r"\boxed{1+x^2}", "x**2 + 1"),
        (r"<think>\boxed{97}</think> it is \boxed{96}", "96"),
        (r"\boxed{\text{East}}", "east"),
        ("The answer is 97. I tried 96.", "97"),
        ("it is clear", None),
        (r"<think>\boxed{97}", None),
        (r"\boxed{x = \frac{1}{2}}", "1/2"),
        (r"\boxed{x \ge 2}", r"[2, \infty)"),
        (r"\boxed{\{x \mid x \ge 2\}}", r"[2, \infty)"),
        (r"\boxed{17_8}", "17_8"),
        (r"\boxed{3:30}", "3:30"),
    ],
)
def test_equal_answers_have_one_canonical_form(response: str, answer: str | None) -> None:
    assert VERIFIER.answer_of(response) == answer


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (r"x=1/2", "1/2", True),
        (r"[2,\infty)", "x≥2", True),
        (r"\{1, 2\}", "2, 1", True),
        (r"y=2x+1", "1+2x", True),
        (r"\pm 3", "3, -3", True),
        ("0.3333333", r"\frac{1}{3}", True),
        ("0.33", r"\frac{1}{3}", False),
        ("10000000", "10000001", False),
        (r"[2,\infty)", "x>2", False),
        ("(1,2)", "(2,1)", False),
        ("17_8", "17_9", False),
        ("3:30", "3:45", False),
        (r"\text{east}", r"\text{seat}", False),
        ("5", "-5", False),
    ],
)
def test_answers_that_mean_the_same_are_one_vote_in_either_order(first: str, second: str, is_same: bool) -> None:
    answers = [VERIFIER.answer_of(rf"\boxed{{{text}}}") for text in (first, second)]
    assert None not in answers
    for pair in (answers, answers[::-1]):
        assert (pair[0] == pair[1] or VERIFIER.is_same_answer(*pair)) is is_same
