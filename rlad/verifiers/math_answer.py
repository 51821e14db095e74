"""Verifier of mathematical answers: reward 1 if the final answer equals the expected one, else 0.

Expressions are compared by math-verify, words as text.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

# With its own timeouts off, math-verify warns at every call that the caller must provide one. Verifiers run in killable
# processes, so the warning does not apply.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_STATED = re.compile(
    r"(?:\banswer\b[^\n.]{0,60}?(?:\b(?:is|are|equals)\b|[:=])|####)[\s:*]*(?=(?P<stated>\S[^\n]*))", re.IGNORECASE
)
_CLAUSE_END = re.compile(r"[.,;!?]+(?:\s|$)|\s(?:because|since|as|so|for|which|where)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!?]+(?:[*_]*\s|[*_]*$)")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{([^{}]*)\}")
# LaTeX separators of groups of three digits; math-verify handles plain commas.
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\\[,;!: ]|\{,\}|~)\d{3})+(?!\d)")
# Alternatives in AIME answer keys: `080 or 081 (both were accepted)`.
_ALL_ACCEPTED = re.compile(r"(.+?)\s*\((?:both|all|any|either)\b[^()]*\baccepted\)", re.IGNORECASE)
_MATHEMATICAL_WORDS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min", "sqrt", "alpha", "beta", "gamma", "theta"}
)


class MathAnswerVerifierConfig(BaseModel):
    """Settings of the mathematical-answer verifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["math_answer"]

    def build(self) -> MathAnswerVerifier:
        """Return the verifier."""
        # Load sympy and the LaTeX grammar now. This takes seconds, which would count against the first deadline.
        _parse("1")
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
        words = _words_of(answer)
        gold = _parse(answer) if not words and re.search(r"\w", answer) else []
        if not words and not gold:
            raise DataError(
                f"math_answer: the expected answer {answer!r} cannot be read as mathematics or words; "
                "correct the prompt record"
            )
        final = _final_answer(response_text)
        if final is None:
            return UNPARSEABLE
        if words:
            return _verify_words(words, final)
        parsed = _parse_final(final)
        if not parsed:
            return UNPARSEABLE
        return CORRECT if _are_equal(gold, parsed) else WRONG

    def answer_of(self, response_text: str) -> str | None:
        r"""Return the final answer as sympy prints it, and boxed words in lower case; None without an answer.

        Numbers are printed as fractions: `1/2` for `\frac{2}{4}` and for `0.5`.
        """
        from sympy import Basic, nsimplify  # Imported here because the import is slow.

        final = _final_answer(response_text)
        if final is None:
            return None
        words = _words_of(final.text) if final.is_marked else ""
        answers = [words] if words else _parse_final(final)
        if not answers:
            return None
        answer = answers[0]
        return str(
            nsimplify(answer.doit(), rational=True) if isinstance(answer, Basic) and answer.is_number else answer
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinalAnswer:
    """Text of a response that contains its final answer.

    Attributes:
        text: The text.
        is_marked: True if a box or tags mark the text, so it contains only the answer.
        is_stated: True if "the answer is" precedes the text, so it begins with the answer.
    """

    text: str
    is_marked: bool = False
    is_stated: bool = False


def _final_answer(response_text: str) -> _FinalAnswer | None:
    """Return the final answer of a response; None if the thinking has not ended."""
    text_after_thinking = after_thinking(response_text)
    if text_after_thinking is None:
        return None
    block = last_answer_block(text_after_thinking)
    text = text_after_thinking if block is None else block
    boxed = last_boxed(text)
    if boxed is not None:
        return _FinalAnswer(text=boxed, is_marked=True)
    statements = [match["stated"] for match in _STATED.finditer(text)]
    if statements:
        return _FinalAnswer(text=statements[-1], is_stated=True)
    return _FinalAnswer(text=text, is_marked=block is not None)


def _parse_final(final: _FinalAnswer) -> list[Any]:
    if final.is_marked:
        return _parse(final.text)
    if final.is_stated:
        return _parse_statement(final.text)
    # math-verify would take the number after any "answer".
    return _parse_prose(re.sub("answer", "result", final.text, flags=re.IGNORECASE))


def _parse(latex: str) -> list[Any]:
    """Parse a text that contains only mathematics."""
    latex = latex.strip().strip("$").strip()
    latex = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), latex)
    return _parse_prose(f"\\boxed{{{latex}}}") if latex else []


def _parse_statement(stated: str) -> list[Any]:
    """Parse the text after "the answer is": a formula alone, or a formula in a sentence."""
    formula = _SENTENCE_END.split(stated, maxsplit=1)[0].strip("* ")
    formula = re.sub(r"\s(?:and|or)\s", ", ", formula)  # "12 or 13" states two answers
    is_formula = not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[$]|\\[(\[]", formula)
    return _parse(formula) if is_formula else _parse_prose(f"The answer is {stated}")


def _parse_prose(text: str) -> list[Any]:
    from math_verify import parse  # Imported here because importing sympy is slow.

    return list(parse(text, parsing_timeout=None))


def _are_equal(gold: list[Any], parsed: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, parsed, timeout_seconds=None, allow_set_relation_comp=True))


def _words_of(answer: str) -> str:
    """Return the normal form of an expected answer that is text; an empty string if it is mathematics."""
    plain = _TEXT_COMMAND.sub(r"\1", answer)
    if re.search(r"[\d\\^_=+*/<>{}|]", plain):
        return ""
    words = _normal_words(plain)
    is_marked = not _normal_words(_TEXT_COMMAND.sub("", answer))
    # One or two bare letters are variables.
    is_word = any(len(word) > 2 and word not in _MATHEMATICAL_WORDS for word in words.split()) or words == "no"
    return words if is_marked or is_word else ""


def _normal_words(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text)).casefold()


def _verify_words(words: str, final: _FinalAnswer) -> Verdict:
    """Compare a text, its first sentence and its first clause with the expected words.

    A differing text is wrong if it is marked or stated as the answer, and otherwise unparseable.
    """
    plain = _TEXT_COMMAND.sub(r"\1", final.text)
    readings = [plain, _SENTENCE_END.split(plain, maxsplit=1)[0], _CLAUSE_END.split(plain, maxsplit=1)[0]]
    if any(_without_article(_normal_words(reading)) == _without_article(words) for reading in readings):
        return CORRECT
    return WRONG if (final.is_marked or final.is_stated) and plain.strip() else UNPARSEABLE


def _without_article(words: str) -> str:
    return re.sub(r"^(?:the|an?) (?=.)", "", words)
