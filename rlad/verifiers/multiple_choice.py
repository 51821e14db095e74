"""Multiple-choice verifier: reward 1 for the correct letter, else 0."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_LATEX = re.compile(r"\\(?:text|math)\w*\s*(?=\{)|\\[ ,;!]|[${}*_`]")
_STATED = re.compile(r"\banswers?\b[^\n.]{0,60}?(?:\b(?:is|are)\b|[:=])\s*(?=(?P<stated>\S[^\n]*))", re.IGNORECASE)
_NAMED = r"(?:(?:option|choice|answer)\s+)?"
# A letter marked as the answer, followed by nothing, or by punctuation and the option's text.
_MARKED_LETTER = re.compile(rf"\W*(?i:{_NAMED})\(?(?P<letter>[A-Za-z])(?:\s*[).:\-–—]|\s*$|,)")
# In a sentence a bare letter must be a capital: "the answer is a matter of taste".
_STATED_LETTER = re.compile(
    rf"(?i:the\s+)?(?i:{_NAMED})(?:\(\s*(?P<bracketed>[A-Za-z])\s*\)|(?P<letter>[A-Z])(?![\w'’]))"
)
_ANOTHER_LETTER = re.compile(
    r"(?:\b(?:or|and)\b|[,/&])\s*(?:(?:option|choice)\s+)?\(?([A-Za-z])(?:\)|[.,;]?\s*$|\s*[,/&]|\s+(?:or|and)\b)",
    re.IGNORECASE,
)


class MultipleChoiceVerifierConfig(BaseModel):
    """Settings of the multiple-choice verifier. A prompt's answer is the letter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["multiple_choice"]
    options: int = Field(4, ge=2, le=26, description="Number of options of a question, lettered from A.")

    def build(self) -> MultipleChoiceVerifier:
        """Return the verifier."""
        return MultipleChoiceVerifier(letters=string.ascii_uppercase[: self.options])


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoiceVerifier:
    r"""Verifier of answers such as `<answer>B</answer>`, `\boxed{B}` or "the answer is (B)".

    The answer is the last `<answer>` block, or else the last box, or else the text after the last "the answer is", or
    else a response that consists of one letter. An answer with two letters, or with a letter that is not an option, is
    unparseable.

    Attributes:
        letters: Letters of the options.
    """

    letters: str

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response against a letter. Text before `</think>` is ignored.

        Raises:
            DataError: `answer` is not the letter of an option.
        """
        gold = answer.strip().upper()
        if len(gold) != 1 or gold not in self.letters:
            raise DataError(
                f"multiple_choice: the answer of a question must be one letter of {self.letters}, got {answer!r}"
            )
        letter = self.answer_of(response_text)
        if letter is None:
            return UNPARSEABLE
        return CORRECT if letter == gold else WRONG

    def answer_of(self, response_text: str) -> str | None:
        """Return the chosen letter in upper case; None if there is none."""
        text = after_thinking(response_text)
        letter = None if text is None else _chosen(text)
        return letter if letter is not None and letter in self.letters else None


def _chosen(text: str) -> str | None:
    """Return the letter that a response chooses, in upper case; None if it chooses none or several."""
    block = last_answer_block(text)
    text = text if block is None else block
    boxed = last_boxed(text)
    marked = boxed if boxed is not None else block
    if marked is None:
        statements = [match["stated"] for match in _STATED.finditer(text)]
        if statements:
            return _one_letter(_STATED_LETTER, statements[-1])
        return _one_letter(_MARKED_LETTER, text) if len(text.strip()) <= 4 else None
    return _one_letter(_MARKED_LETTER, marked) or next(
        (_one_letter(_STATED_LETTER, match["stated"]) for match in _STATED.finditer(marked)), None
    )


def _one_letter(pattern: re.Pattern[str], text: str) -> str | None:
    plain = _LATEX.sub("", text).strip()
    match = pattern.match(plain)
    if match is None:
        return None
    letter = next(group for group in match.groups() if group).upper()
    sentence = re.split(r"[.;!?]\s", plain, maxsplit=1)[0] if match.end() < len(plain) else plain
    others = {other.upper() for other in _ANOTHER_LETTER.findall(sentence)} - {letter}
    return None if others else letter
