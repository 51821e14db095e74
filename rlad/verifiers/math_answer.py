"""Verifier of mathematical answers: reward 1 if the final answer equals the expected one, else 0.

Expressions are compared by math-verify, words as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from rlad.errors import DataError
from rlad.verifiers.math.equivalence import are_equivalent, parse_formula, parse_prose
from rlad.verifiers.math.extraction import FinalAnswer, final_answer, first_readings, formula_of_statement
from rlad.verifiers.math.normalization import canonical, clean, fold_unicode, tidy
from rlad.verifiers.math.readings import (
    compare_special,
    normal_words,
    without_article,
    without_text_commands,
    words_of,
)
from rlad.verifiers.math.votes import canonical_answer, compare_numbers
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

# Alternatives in AIME answer keys: `080 or 081 (both were accepted)`.
_ALL_ACCEPTED = re.compile(r"(.+?)\s*\((?:both|all|any|either)\b[^()]*\baccepted\)", re.IGNORECASE)

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
# Numbers in words: one of them is not the answer.
_SEVERAL_NUMBERS = re.compile(r"\d[^\d]*(?:\b(?:and|or|to|through|plus)\b|,\s)[^\d]*\d")
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?![A-Za-z0-9_]|[.,]\d)")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[$]|[\u4e00-\u9fff]")


class MathAnswerVerifierConfig(TaggedVerifierConfig):
    """Settings of the mathematical-answer verifier."""

    name: Literal["math_answer"]

    def build(self) -> MathAnswerVerifier:
        """Return the verifier."""
        # Load sympy and the LaTeX grammar now. This takes seconds, which would count against the first deadline.
        parse_formula("1")
        return MathAnswerVerifier()


@dataclass(frozen=True, slots=True)
class MathAnswerVerifier:
    r"""Verifier of answers such as `so the sum is \boxed{97}`.

    The final answer is taken from the last `<answer>` block, or else from the whole response. Within that text it is
    the last `\boxed{}`, or else the text after the last "the answer is" (or "Answer:", or "####"), or else the last
    number or formula. Of several boxes only the last counts.

    An expected answer that consists of words (`Monday`, `\text{east}`) is compared as text, ignoring case. Parsed as
    mathematics, words are products of their letters, and `east` would equal `seat`. `25\%` equals both 0.25 and 25.
    Units are ignored. Sets are unordered, tuples are ordered. If the expected answer is `080 or 081 (both were
    accepted)`, either alternative is correct.

    The timeouts of math-verify are off, because they are signal alarms, which fail outside the main thread. The caller
    enforces deadlines.
    """

    def verify(self, response_text: str, answer: str) -> Verdict:
        r"""Verify a response. Text before `</think>` is ignored; without an end of the thinking there is no answer.

        Args:
            response_text: The response, without its prompt.
            answer: Expected answer, in LaTeX or plain text, for example `\frac{1}{2}`, `97` or `Monday`.

        Raises:
            DataError: `answer` is neither parseable mathematics nor words.
        """
        accepted = _ALL_ACCEPTED.fullmatch(answer)
        if accepted:
            verdicts = [self.verify(response_text, alternative) for alternative in accepted[1].split(" or ")]
            return CORRECT if CORRECT in verdicts else verdicts[0]
        expected = _read_expected(answer)
        if not expected.words and not expected.parsed:
            raise DataError(
                f"math_answer: the expected answer {answer!r} cannot be read as mathematics or words; "
                "correct the prompt record"
            )
        final = final_answer(response_text)
        if final is None:
            return UNPARSEABLE
        if expected.words:
            return _verify_words(expected.words, final)
        given = _given_text(final)
        given_text = ""
        if given is not None:
            if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(expected.text):
                return CORRECT if int(given) == int(expected.text) else WRONG
            tidied = tidy(given)
            is_equal = compare_special(expected.tidy, tidied)
            if is_equal is not None:
                return CORRECT if is_equal else WRONG
            given_text = clean(tidied)
            if canonical(given_text) == expected.canonical:
                return CORRECT
        parsed = parse_formula(given_text) if given is not None else _parse_text(final)
        if not parsed:
            return UNPARSEABLE
        is_equal = are_equivalent(expected.text, given_text, list(expected.parsed), parsed)
        return CORRECT if is_equal else WRONG

    def answer_of(self, response_text: str) -> str | None:
        r"""Return the final answer in a canonical form; None without an answer.

        Numbers are fractions (`1/2` for `\frac{2}{4}`, `0.5` and `x=1/2`), other expressions are printed by sympy,
        words are in lower case, and inequalities are intervals. Sets, tuples, equations, clock times, ratios and
        numbers with a base stay as they are written.
        """
        final = final_answer(response_text)
        if final is None:
            return None
        words = words_of(tidy(final.text)) if final.is_marked else ""
        if words:
            return words
        given = _given_text(final)
        tidied = "" if given is None else tidy(given)
        if given is not None and compare_special(tidied, tidied):
            return without_text_commands(tidied)
        text = clean(tidied)
        answers = _parse_text(final) if given is None else parse_formula(text)
        return canonical_answer(text, answers[0]) if answers else None

    def response_for(self, answer: str) -> str:
        """Return a response with the expected answer in a box; of several accepted answers the first."""
        accepted = _ALL_ACCEPTED.fullmatch(answer)
        return rf"\boxed{{{_without_solution(accepted[1].split(' or ')[0] if accepted else answer)}}}"

    def is_same_answer(self, first: str, second: str) -> bool:
        """Return True if either of two answers of `answer_of` would be correct where the other is expected."""
        is_same_number = compare_numbers(first, second)
        if is_same_number is not None:
            return is_same_number
        return any(self._accepts(given, expected) for given, expected in ((first, second), (second, first)))

    def _accepts(self, given: str, expected: str) -> bool:
        try:
            return self.verify(rf"\boxed{{{given}}}", expected) == CORRECT
        except DataError:  # an answer of a response need not be a readable expected answer
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """Expected answer.

    Attributes:
        tidy: The answer without styling.
        words: Its words if it is text, else empty.
        text: The cleaned answer.
        canonical: The cleaned answer without spacing and redundant braces.
        parsed: The parsed answer; empty for words, and if it cannot be parsed.
    """

    tidy: str
    words: str
    text: str
    canonical: str
    parsed: tuple[Any, ...]


@lru_cache(maxsize=256)  # all responses of a group have the same expected answer
def _read_expected(answer: str) -> _Expected:
    answer = _without_solution(answer)
    tidied = tidy(answer)
    text = clean(tidied)
    words = words_of(tidied)
    parsed = parse_formula(text) if not words and re.search(r"\w", answer) else ()
    return _Expected(tidy=tidied, words=words, text=text, canonical=canonical(text), parsed=tuple(parsed))


def _without_solution(answer: str) -> str:
    """Return the answer at the end of an expected answer that is a whole solution with a box or `####`."""
    boxed = last_boxed(answer)
    if boxed:
        return boxed
    return answer.rpartition("####")[2].strip() if "####" in answer else answer


def _given_text(final: FinalAnswer) -> str | None:
    """Return the answer of a response if it is a formula without words around it, else None."""
    if final.is_marked:
        return final.text
    if not final.is_stated:
        return None
    formula, is_formula = formula_of_statement(final.text)
    formula = fold_unicode(formula)
    if is_formula and not _CHINESE.search(formula):
        return formula
    text = tidy(formula)
    if "$" not in formula and (compare_special(text, text) or _SEVERAL_NUMBERS.search(text)):
        return formula
    cleaned = clean(text)
    if cleaned != text and not _WORD.search(cleaned):
        return cleaned  # a value with its unit
    if re.fullmatch(r"[-+\d.,/\s]+", cleaned):
        return cleaned
    text = re.sub(r"(?<=\d)\s*[(（][^()（）]*[)）]", "", formula)
    if re.search(r"[\\$^_=*<>+|]", text):
        return formula if is_formula else None
    numbers = _NUMBER.findall(text)
    if len(numbers) == 1:
        return str(numbers[0])
    return formula if is_formula else None


def _parse_text(final: FinalAnswer) -> list[Any]:
    if final.is_stated:
        return parse_prose(f"The answer is {fold_unicode(final.text)}")
    # math-verify would take the number after any "answer".
    return parse_prose(re.sub("answer", "result", fold_unicode(final.text), flags=re.IGNORECASE))


def _verify_words(words: str, final: FinalAnswer) -> Verdict:
    """Compare a text, its first sentence and its first clause with the expected words.

    A differing text is wrong if it is marked or stated as the answer, and otherwise unparseable.
    """
    plain = without_text_commands(tidy(final.text))
    if any(without_article(normal_words(reading)) == without_article(words) for reading in first_readings(plain)):
        return CORRECT
    return WRONG if (final.is_marked or final.is_stated) and plain.strip() else UNPARSEABLE
