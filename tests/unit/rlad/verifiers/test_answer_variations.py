r"""Variations of answers that people report: other marks, units, languages, spacing and macros of the same kinds."""

from __future__ import annotations

import json

import pytest

from rlad.contracts import Outcome
from rlad.verifiers import build_verifier

MATH = build_verifier({"name": "math_answer"})
CHOICE = build_verifier({"name": "multiple_choice"})
COUNTDOWN = build_verifier({"name": "countdown"})
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE

BOXED = [
    # Trailing marks and styling.
    *[("17", given, C) for given in (r"17 \ \checkmark", r"17 \; \square", r"17\blacksquare", r"17\\[4pt]", r"17\par")],
    *[("17", given, C) for given in ("17{}", "{}17", "17{.}", r"\\17", r"17\,\text{,}", r"17\enspace", "`17`")],
    *[("3", given, C) for given in (r"\underline{\underline{3}}", r"\mathtt{3}", r"\emph{3}", r"\colorbox{yellow}{3}")],
    ("17", ".17", W),
    ("17", r"\sqrt{17}", W),
    # Numbers.
    ("320000", r"3.2\,\mathrm{e}5", C),
    ("320000", "3.2e6", W),
    ("1.23456e5", "123456", C),
    ("3e8", r"3\times 10^8 m/s", C),
    ("7/3", "2 1/3", C),
    ("8 1/2", "81/2", W),
    (r"1-\frac{1}{2019!}", r"1-\frac{1}{2020!}", W),
    (r"\frac{2^{2019}-1}{2^{2019}}", r"\frac{2^{2018}-1}{2^{2018}}", W),
    (r"\sqrt{2}", r"\sqrt{2}+10^{-15}", W),
    ("5", "5 million", W),
    ("5 million", "5000000", C),
    ("2.5 million", "2.5", W),
    (r"3\text{ billion}", "3", W),
    ("60", "5 dozen", C),
    ("3", "3万", W),
    ("30000", "3万", C),
    ("3", "3千克", C),
    ("3", "3 squared", W),
    # Sets.
    ("(0,1)", r"0 < x \text{ and } x < 1", C),
    ("(0,1)", r"0 < x \text{ and } x \le 1", W),
    ("(0,1)", r"0 < x \text{ and } y < 1", W),
    (r"\left\{ x \;\middle|\; x \geq 0 \right\}", r"[0,\infty)", C),
    (r"\{-2 \leq x \leq 2\}", "[-2,2]", C),
    ("-3<m<5", "5>m>-3", C),
    ("-3<m<5", "5>m>-4", W),
    (r"\{(1,2)\}", "(1,2)", C),
    (r"\{(1,2)\}", "(2,1)", W),
    # Unicode.
    (r"\sqrt[3]{2}", "∛2", C),
    (r"\sqrt[3]{2}", "³√2", C),
    (r"\sqrt[3]{2}", "√2", W),
    ("60", "60º", C),
    ("3/4", "3⁄4", C),
    ("2x+1", "2𝑥+1", C),
    ("5", "𝟓", C),
    # Units, names and words.
    ("3,4", "3或4", C),
    ("3,4", "3和5", W),
    ("8", "8（米）", C),
    ("5", r"5\frac{\text{m}}{\text{s}}", C),
    ("5", "€5", C),
    ("5", "USD 5", C),
    ("5", "€6", W),
    ("3", r"\text{Total: } 3", C),
    (r"\frac{\pi}{6}", "pi/6", C),
    ("7 h 15 min", "7 hours and 15 minutes", C),
    ("7 h 15 min", "7 h 25 min", W),
    ("5 L 250 mL", "5.25 L", C),
    ("12 noon", "12 midnight", W),
    ("12 noon", "12:00 p.m.", C),
    ("f'(x)", "f(x)", W),
    (r"\frac{dy}{dx}", r"\frac{dx}{dy}", W),
    (r"\angle ABC", r"\angle ACB", W),
    (r"\angle ABC", r"\angle CBA", C),
    ("I, II", r"\text{I and II}", C),
    ("I, II", "I and III", W),
]

STATED = [
    ("12", "答：12", C),
    ("12", "答：小明有12个苹果。", C),
    ("12", "所以答案应该是12。", C),
    ("12", "最终结果：12", C),
    ("12", "答案：12 (单位：米)", C),
    ("8", "答案是8或9", W),
    ("12", "The answer is not 12 but 13.", W),
    ("13", "The answer is not 12 but 13.", C),
    ("8", "The answer isn't 8.", U),
    ("8", "The answer cannot be 8.", U),
    ("5", "The answer is between 5 and 6.", U),
    ("8", "The answer is from 8 to 10.", W),
    ("8", "The answer is either 8 or 9.", W),
    ("8", "The answer is 8 hours and 20 minutes.", W),
    ("8", "The answer is 8 feet 2 inches.", W),
    ("8", "The answer is 8 apples and 3 pears.", W),
    ("8", "The answer is 8 apples.", C),
    ("8:30 AM", "The answer is 8:30 PM.", W),
    ("8:30", "The answer is 8:30 PM.", C),
    ("1200", r"The answer is \$1,200.", C),
    ("12", "The answer is `12`.", C),
    ("5", "The answer is 5 — because 12-7=5.", C),
    ("5", "The answer is 5: 2 + 3 = 5 and 7 is prime.", C),
    ("5", "The answer is 5 when x = 12.", C),
    (r"5 \pmod 7", "The answer is 5 (mod 7).", C),
    ("100", "The answer is one hundred (100).", C),
    (r"3\sqrt{5}", "The answer is 3√5 cm.", C),
    (r"\frac{\pi}{6}", "The answer is pi/6.", C),
]

CHOICES = [
    *[
        ("B", text, C)
        for text in ("选B", "正确选项是B", "综上所述，选项B正确", "本题选B。", "Hence, (B).", "I choose B.")
    ],
    *[("B", text, C) for text in ("### Answer\n**(B)**", r"The answer is \(B\).", "**Option B** is correct.", '"B"')],
    *[("B", text, C) for text in (r"\boxed{12} which is option B.", "The correct letter is B.", "answer: b")],
    *[
        ("B", text, U)
        for text in ("不选B", "若选B则矛盾", "答案不是B", "Option B is not correct.", "The answer is not B.")
    ],
    ("B", "选项B正确吗？不，选C", W),
    ("A", "The answer is a matter of taste.", U),
]

PUZZLE = json.dumps({"numbers": [3, 4, 6], "target": 42})
EXPRESSIONS = [
    *[
        (text, C)
        for text in ("42 = (3+4)*6", "(3+4)(6)", "(3+4)*6;", r"\bigl(3+4\bigr)\times6", r"(3+4)\times6=42\checkmark")
    ],
    ("42 = (3+4)*7", W),
    ("42 = 42", W),
    ("(3+4)(7)", W),
]


@pytest.mark.parametrize(("answer", "given", "outcome"), BOXED)
def test_answer_in_a_box(answer: str, given: str, outcome: Outcome) -> None:
    assert MATH.verify(rf"So it is \boxed{{{given}}}.", answer).outcome == outcome


@pytest.mark.parametrize(("answer", "response", "outcome"), STATED)
def test_answer_in_a_sentence(answer: str, response: str, outcome: Outcome) -> None:
    assert MATH.verify(response, answer).outcome == outcome


@pytest.mark.parametrize(("answer", "response", "outcome"), CHOICES)
def test_choice(answer: str, response: str, outcome: Outcome) -> None:
    assert CHOICE.verify(response, answer).outcome == outcome


@pytest.mark.parametrize(("expression", "outcome"), EXPRESSIONS)
def test_countdown_expression(expression: str, outcome: Outcome) -> None:
    assert COUNTDOWN.verify(f"<answer>{expression}</answer>", PUZZLE).outcome == outcome
