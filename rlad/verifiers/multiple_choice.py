"""Multiple-choice verifier: reward 1 for the correct letter, else 0."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from rlad.errors import DataError
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_LATEX = re.compile(r"\\(?:text|math)\w*\s*(?=\{)|\\[ ,;!()\[\]]|[${}*_`]")
# Statements of the answer, in English and in Chinese. The Chinese ones are searched for only in texts with their words.
_ENGLISH_STATEMENT = (
    r"\b(?:answers?|(?:correct|right|best|final)\s+(?:option|choice|letter))\b[^\n.]{0,60}?"
    r"(?:\b(?:is|are|(?:should|must|would|has\s+to)\s+be)\b|[:：=])(?:\s+(?:therefore|thus|hence|then)\b)?"
    r"|\bI(?:['’]d|\s+would|\s+will)?\s+(?:choose|pick|select|go\s+with)\b"
    r"|\b(?:which\s+is|correspond(?:s|ing)\s+to|matches)\s+(?=(?:option|choice)\b)"
    r"|^[#*_ \t]*(?:final\s+)?answer[*_ \t]*\n"
)
_CHINESE_STATEMENT = (
    r"(?:【\s*)?(?:最终|正确|故|最后)?答案(?:\s*】)?\s*(?:应?[是为选]|[:：])?|(?:故|应|因此|所以)选(?:择|项)?"
    r"|(?<![不若如果未除])选(?=\s*[（(\[]?[A-Z])|(?:正确|最佳)选项\s*[是为:：]"
)
_STATED, _STATED_IN_CHINESE = (
    re.compile(rf"(?:{statement})[\s*_:：]*(?=(?P<stated>[^\s*_:：][^\n]*))", re.IGNORECASE | re.MULTILINE)
    for statement in (_ENGLISH_STATEMENT, f"{_ENGLISH_STATEMENT}|{_CHINESE_STATEMENT}")
)
# "Option B is correct" and "B is the correct answer".
_NAMED_CORRECT = re.compile(
    r"(?:^|[.!?:;,\n]\s*|\b(?i:thus|therefore|so|hence|then|conclude)\s*,?\s*(?:that\s+)?)(?:the\s+)?[*_]{0,2}"
    r"(?:\b(?i:option|choice|answer)\s+[*_(\[]{0,3}(?P<option>[A-Za-z])[*_)\]]{0,3}"
    r"|(?<![\w'’])[*_(\[]{0,3}(?P<letter>[A-Z])[*_)\]]{0,3})"
    r"\s+is\s+(?:therefore\s+|thus\s+|clearly\s+)?(?:the\s+)?(?:only\s+)?(?:correct|right|best)\b"
    r"|(?:^|[，。,;；\s]|所以|因此|故)选项\s*(?P<chinese>[A-Z])\s*是?(?:正确|对)(?!吗)"
)
# Text without which `_NAMED_CORRECT`, which is slow, finds nothing.
_IS_CORRECT = re.compile(r"is\s+(?:(?:therefore|thus|clearly)\s+)?(?:the\s+)?(?:only\s+)?(?:correct|right|best)\b")
_CONCLUDING = re.compile(r"\b(?:hence|thus|therefore|so)$", re.IGNORECASE)
_NAMED = r"(?:(?:option|choice|answer)\s+)?"
# A letter marked as the answer, followed by nothing, or by punctuation and the option's text.
_MARKED_LETTER = re.compile(rf"\W*(?i:{_NAMED})\(?(?P<letter>[A-Za-z])(?:\s*[)\].:\-–—．。]|[\"'”’]?\s*$|,)")
# In a sentence a bare letter must be a capital: "the answer is a matter of taste".
_STATED_LETTER = re.compile(
    rf"(?i:the\s+)?(?i:{_NAMED})(?:[(\[<（]\s*(?P<bracketed>[A-Za-z])\s*[)\]>）]|(?P<letter>[A-Z])(?![A-Za-z0-9_'’])"
    r"|(?P<alone>[a-z])\.?\s*$)"
)
# Several letters, or a letter that is not an option, are an answer, though not a valid one.
_LETTER_ONLY = re.compile(
    r"^\W*(?:(?:option|choice|answer)s?\W+)?[A-Za-z](?:\W+(?:(?:or|and)\W+)?[A-Za-z])*\W*$|^\W*[A-Z]{2,6}\W*$"
)
_GOLD_IN_MARKS = re.compile(r"^\((\w)\)\.?$|^(\w)[.):]$")
_BARE_OPTION = re.compile(r"(?:option|choice)\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!?]\s")
# Maximum length of a response that consists of one letter, with LaTeX and Markdown around it.
_MAX_BARE = 80
_LATIN = str.maketrans({code: code - 0xFEE0 for code in range(0xFF21, 0xFF5B)} | {0xFF08: "(", 0xFF09: ")"})
_ANOTHER_LETTER = re.compile(
    r"(?:\b(?:or|and)\b|[,/&])\s*(?:(?:option|choice)\s+)?\(?([A-Za-z])(?:\)|[.,;]?\s*$|\s*[,/&]|\s+(?:or|and)\b)",
    re.IGNORECASE,
)


class MultipleChoiceVerifierConfig(TaggedVerifierConfig):
    """Settings of the multiple-choice verifier. A prompt's answer is the letter."""

    name: Literal["multiple_choice"]
    options: int = Field(4, ge=2, le=26, description="Number of options of a question, lettered from A.")

    def build(self) -> MultipleChoiceVerifier:
        """Return the verifier."""
        return MultipleChoiceVerifier(letters=string.ascii_uppercase[: self.options])


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoiceVerifier:
    r"""Verifier of answers such as `<answer>B</answer>`, `\boxed{B}` or "the answer is (B)".

    The answer is the last box in the last `<answer>` block, or else the block, or else the last box of the response, or
    else the last statement ("the answer is B", "option B is correct", Chinese statements), or else a response that
    consists of one letter. A box that holds a value instead of letters is skipped. An answer with two letters, or with
    a letter that is not an option, is unparseable.

    Attributes:
        letters: Letters of the options.
    """

    letters: str

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response against a letter. Text before `</think>` is ignored.

        Raises:
            DataError: `answer` is not the letter of an option.
        """
        gold = answer if len(answer) == 1 else _GOLD_IN_MARKS.sub(r"\1\2", answer.strip())
        gold = gold.upper()
        if len(gold) != 1 or gold not in self.letters:
            raise DataError(
                f"multiple_choice: the answer of a question must be one letter of {self.letters}, got {answer!r}"
            )
        letter = self.answer_of(response_text)
        if letter is None:
            return UNPARSEABLE
        return CORRECT if letter == gold else WRONG

    def response_for(self, answer: str) -> str:
        """Return a response with the letter in `<answer>` tags."""
        return f"<answer>{answer}</answer>"

    def answer_of(self, response_text: str) -> str | None:
        """Return the chosen letter in upper case; None if there is none."""
        text = after_thinking(response_text)
        letter = None if text is None else _chosen(text)
        return letter if letter is not None and letter in self.letters else None


def _chosen(text: str) -> str | None:
    """Return the letter that a response chooses, in upper case; None if it chooses none or several."""
    if not text.isascii():
        text = text.translate(_LATIN)
    block = last_answer_block(text)
    text = text if block is None else block
    boxed = last_boxed(text)
    for marked in (boxed, block):
        letter = None if marked is None else _letter_of_mark(marked)
        if letter is not None:
            return letter
    # A box or a block without a letter holds a value, and the letter follows in words.
    for marked in (boxed, block):
        if marked is not None and _LETTER_ONLY.match(_LATEX.sub("", marked)):
            return None
    return _letter_of_statement(text, allows_bare_letter=boxed is None)


def _letter_of_mark(marked: str) -> str | None:
    if len(marked) == 1 and marked.isascii() and marked.isalpha():
        return marked.upper()
    return _one_letter(_MARKED_LETTER, marked) or next(
        (_one_letter(_STATED_LETTER, stated) for _, stated in _statements(marked)), None
    )


def _statements(text: str) -> list[tuple[int, str]]:
    """Return position and continuation of each statement of the answer."""
    pattern = _STATED_IN_CHINESE
    if text.isascii() or not ("答案" in text or "选" in text):
        pattern, lower = _STATED, text.lower()
        # The pattern is slow, and needs one of these words.
        if not (
            "answer" in lower
            or "option" in lower
            or "choice" in lower
            or "letter" in lower
            or "choose" in lower
            or "pick" in lower
            or "select" in lower
            or "with" in lower
        ):
            return []
    return [(match.start(), match["stated"]) for match in pattern.finditer(text)]


def _named_letters(text: str) -> list[tuple[int, str]]:
    """Return position and letter of each "option B is correct", and of "therefore B" at the end."""
    named = []
    if _IS_CORRECT.search(text) or "选项" in text:
        named = [
            (match.start(), next(group for group in match.groups() if group)) for match in _NAMED_CORRECT.finditer(text)
        ]
    end = text.rstrip().removesuffix(".").rstrip().rstrip("*_)]")
    if "A" <= end[-1:] <= "Z":
        before = end[:-1].rstrip("*_([").rstrip().removesuffix(",").rstrip()
        word = _CONCLUDING.search(before[-10:]) if before[-2:].lower() in ("ce", "us", "re", "so") else None
        if word is not None:
            named.append((len(before) - len(word[0]), end[-1]))
    return named


def _letter_of_statement(text: str, *, allows_bare_letter: bool) -> str | None:
    """Return the letter of the last statement of the answer."""
    statements = _statements(text)
    named = _named_letters(text)
    if named and (not statements or named[-1][0] > statements[-1][0]):
        return named[-1][1].upper()
    if statements:
        return _one_letter(_STATED_LETTER, statements[-1][1])
    if not allows_bare_letter or len(text) > _MAX_BARE:
        return None
    plain = _LATEX.sub("", text).strip()
    option = _BARE_OPTION.match(plain)
    is_bare = len(plain if option is None else plain[option.end() :].strip()) <= 4
    return _one_letter(_MARKED_LETTER, text) if is_bare else None


def _one_letter(pattern: re.Pattern[str], text: str) -> str | None:
    plain = _LATEX.sub("", text).strip()
    match = pattern.match(plain)
    if match is None:
        return None
    letter = next(group for group in match.groups() if group).upper()
    sentence = _SENTENCE_END.split(plain, maxsplit=1)[0] if match.end() < len(plain) else plain
    others = {other.upper() for other in _ANOTHER_LETTER.findall(sentence)} - {letter}
    return None if others else letter
