"""Mathematical answers: reward 1 if the final answer equals the given one, as mathematics by math-verify or as text, else 0."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

# Without its own timeouts math-verify warns at every call that the caller must provide one. We do: verifiers run in processes that are killed.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_STATED = re.compile(
    r"(?:\banswer\b[^\n.]{0,60}?(?:\b(?:is|are|equals)\b|[:=])|####)[\s:*]*(?=(?P<stated>\S[^\n]*))", re.IGNORECASE
)
_CLAUSE_END = re.compile(r"[.,;!?]+(?:\s|$)|\s(?:because|since|as|so|for|which|where)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!?]+(?:[*_]*\s|[*_]*$)")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{([^{}]*)\}")
# LaTeX's ways to set digits apart in groups of three; plain commas are left to math-verify.
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\\[,;!: ]|\{,\}|~)\d{3})+(?!\d)")
# As AIME's answer keys put it: `080 or 081 (both were accepted)`.
_ALL_ACCEPTED = re.compile(r"(.+?)\s*\((?:both|all|any|either)\b[^()]*\baccepted\)", re.IGNORECASE)
_MATHEMATICAL_WORDS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min", "sqrt", "alpha", "beta", "gamma", "theta"}
)


class MathAnswerVerifierConfig(BaseModel):
    """Settings of the mathematical-answer verifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["math_answer"]

    def build(self) -> MathAnswerVerifier:
        _parse(
            "1"
        )  # loads sympy and the LaTeX grammar: seconds that would else count against the first response's deadline
        return MathAnswerVerifier()


@dataclass(frozen=True, slots=True)
class MathAnswerVerifier:
    r"""Judges answers such as `so the sum is \boxed{97}`.

    The answer is what the last `<answer>` block says, else the whole response: in it the last `\boxed{}`; without one, what follows the last
    "the answer is" (or "Answer:", or "####"); without that, the last number or formula. Of several boxes only the last counts.

    An expected answer that is words (`Monday`, `\text{east}`) is compared as text, without regard to case: read as mathematics, words are products
    of their letters, and `east` equals `seat`. `25\%` equals both 0.25 and 25; units count for nothing; a set has no order, a tuple has.

    Of an expected `080 or 081 (both were accepted)` either will do.

    math-verify's own timeouts are signal alarms, which fail off the main thread; they are off here, the deadline is the caller's.
    """

    def verify(self, response_text: str, answer: str) -> Verdict:
        r"""Judge a response; what stands before a closing `</think>` does not count, and thinking that did not end answers nothing.

        Args:
            answer: the expected answer, in LaTeX or plain, for example `\frac{1}{2}`, `97` or `Monday`.

        Raises:
            DataError: `answer` is neither mathematics that can be read nor words.
        """
        accepted = _ALL_ACCEPTED.fullmatch(answer)
        if accepted:
            verdicts = [self.verify(response_text, alternative) for alternative in accepted[1].split(" or ")]
            return CORRECT if CORRECT in verdicts else verdicts[0]
        words = _words_of(answer)
        gold = _parse(answer) if not words and re.search(r"\w", answer) else []
        if not words and not gold:
            raise DataError(f"the expected answer {answer!r} cannot be read as mathematics")
        final = _final_answer(response_text)
        if final is None:
            return UNPARSEABLE
        if words:
            return _judge_words(words, final)
        given = _parse_final(final)
        if not given:
            return UNPARSEABLE
        return CORRECT if _are_equal(gold, given) else WRONG

    def answer_of(self, response_text: str) -> str | None:
        r"""The final answer as sympy prints it, numbers as fractions: `1/2` for `\frac{2}{4}` and for `0.5`. Boxed words as they are, in lower case."""
        from sympy import Basic, nsimplify  # takes a while to import

        final = _final_answer(response_text)
        if final is None:
            return None
        words = _words_of(final.text) if final.is_marked else ""
        given = [words] if words else _parse_final(final)
        if not given:
            return None
        answer = given[0]
        return str(
            nsimplify(answer.doit(), rational=True) if isinstance(answer, Basic) and answer.is_number else answer
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinalAnswer:
    """Where a response gives its answer.

    Attributes:
        is_marked: by a box or tags, so that the text is the answer and nothing else.
        is_stated: by "the answer is", so that the answer begins the text.
    """

    text: str
    is_marked: bool = False
    is_stated: bool = False


def _final_answer(response_text: str) -> _FinalAnswer | None:
    """None where thinking has not ended."""
    spoken = after_thinking(response_text)
    if spoken is None:
        return None
    block = last_answer_block(spoken)
    text = spoken if block is None else block
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
    return _parse_prose(
        re.sub("answer", "result", final.text, flags=re.IGNORECASE)
    )  # math-verify takes the number after any "answer"


def _parse(latex: str) -> list[Any]:
    """What is mathematics and nothing else."""
    latex = latex.strip().strip("$").strip()
    latex = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), latex)
    return _parse_prose(f"\\boxed{{{latex}}}") if latex else []


def _parse_statement(stated: str) -> list[Any]:
    """What follows "the answer is": a formula alone, or one in a sentence."""
    formula = _SENTENCE_END.split(stated, maxsplit=1)[0].strip("* ")
    formula = re.sub(r"\s(?:and|or)\s", ", ", formula)  # "12 or 13" is two answers, not the first of them
    is_formula = not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[$]|\\[(\[]", formula)
    return _parse(formula) if is_formula else _parse_prose(f"The answer is {stated}")


def _parse_prose(text: str) -> list[Any]:
    from math_verify import parse  # sympy takes a while to import

    return list(parse(text, parsing_timeout=None))


def _are_equal(gold: list[Any], given: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, given, timeout_seconds=None, allow_set_relation_comp=True))


def _words_of(answer: str) -> str:
    """The normal form of an expected answer that is text; empty for one that is mathematics."""
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


def _judge_words(words: str, final: _FinalAnswer) -> Verdict:
    """Compare a text, its first sentence and its first clause with the expected words. A text that does not say it is the answer is no wrong one."""
    plain = _TEXT_COMMAND.sub(r"\1", final.text)
    readings = [plain, _SENTENCE_END.split(plain, maxsplit=1)[0], _CLAUSE_END.split(plain, maxsplit=1)[0]]
    if any(_without_article(_normal_words(reading)) == _without_article(words) for reading in readings):
        return CORRECT
    return WRONG if (final.is_marked or final.is_stated) and plain.strip() else UNPARSEABLE


def _without_article(words: str) -> str:
    return re.sub(r"^(?:the|an?) (?=.)", "", words)
