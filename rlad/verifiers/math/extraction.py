"""Extraction of the final answer of a mathematical response."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed

_STATED = re.compile(
    r"(?:\banswers?\b[^\n.]{0,60}?"
    r"(?:(?P<negation>\b(?:isn['’]t|aren['’]t|(?:can(?:not|['’]t)|could\s*n['’o]t|must\s+not|should\s+not)\s+be)\b)"
    r"|\b(?:is|are|equals|(?:would|should|must|will|has\s+to)\s+be)\b|[:=])|####"
    r"|(?:[【\[]\s*)?(?:最终|正确|故|最后)?答案(?:\s*[】\]])?\s*(?:应该|应当|应|就|即)?(?:是|为|等于|[:：=])"
    r"|(?:[【\[]\s*)?(?:最终|正确|故|最后)?答案(?:\s*[】\]])?|(?:^|[\n。；，])\s*答\s*[:：]|故选)"
    r"[\s:：*]*(?=(?P<stated>\S[^\n]*))",
    re.IGNORECASE,
)
# Weaker statements, used only without a stated answer.
_SOLUTIONS = re.compile(
    r"\b(?:solutions|roots|results|values)\s+are\b[\s:*]*(?=(?P<stated>\S[^\n]*))"
    r"|结果\s*(?:[是为]|等于|[:：=])[\s:：*]*(?=(?P<chinese>\S[^\n]*))",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"(?:\w+ly\s+)?not\b[^\n]*?(?:,?\s*(?:but|it is|it's)\s+(?P<instead>\S[^\n]*))?$", re.IGNORECASE)
# A statement of a range gives no value: "the answer is between 5 and 6".
_RANGE = re.compile(
    r"(?:between|somewhere|(?:strictly )?(?:less|more|greater|fewer|larger|smaller) than)\b", re.IGNORECASE
)
_DISPLAY = re.compile(r"\s*(?:\\\[(.+?)\\\]|\$\$(.+?)\$\$|\\\((.+?)\\\))", re.DOTALL)
_CLAUSE_END = re.compile(
    r"[,;]?\s*\(?(?:\b(?:because|since|which|where|when|if|i\.e\.|that is|as required|not|but)(?=\W)|检验|因为|验证)"
    r"|[，。；！？]|\s[—–]\s|\s--+\s|\(\s*单位|(?<=\d):\s(?=.*=)|,(?=\s*(?:as|so|for)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.;!?]+(?:[*_]*\s|[*_]*$)")
_LEADING_FORMULAS = re.compile(r"\$[^$]+\$(?:\s*(?:,\s*and\b|,\s*or\b|[,;]|\band\b|\bor\b)\s*\$[^$]+\$)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalAnswer:
    """Text of a response that contains its final answer.

    Attributes:
        text: The text.
        is_marked: True if a box or tags mark the text, so it contains only the answer.
        is_stated: True if "the answer is" precedes the text, so it begins with the answer.
    """

    text: str
    is_marked: bool = False
    is_stated: bool = False


def final_answer(response_text: str) -> FinalAnswer | None:
    """Return the final answer of a response; None if the thinking has not ended."""
    text_after_thinking = after_thinking(response_text)
    if text_after_thinking is None:
        return None
    block = last_answer_block(text_after_thinking)
    text = text_after_thinking if block is None else block
    boxed = last_boxed(text)
    if boxed is not None:
        return FinalAnswer(text=boxed, is_marked=True)
    for pattern in (_STATED, _SOLUTIONS):
        statements = list(pattern.finditer(text))
        if statements:
            display = _DISPLAY.match(text, statements[-1].end())
            found = statements[-1].groupdict()
            negation = found.pop("negation", None)
            stated = next(group for group in (display.groups() if display else found.values()) if group).strip()
            negated = _NEGATED.match(f"not {stated}" if negation else stated)
            stated = (negated["instead"] or "") if negated else stated
            return FinalAnswer(text="" if _RANGE.match(stated) else stated, is_stated=True)
    return FinalAnswer(text=text, is_marked=block is not None)


def formula_of_statement(stated: str) -> tuple[str, bool]:
    """Return the answer at the beginning of a statement, and whether it is a formula without words."""
    stated = re.sub(r"\\\$(?=[\d.])", "", stated)
    stated = re.sub(r"\(?\bmod\s+(\d+)\)?", r"\\pmod{\1}", stated)
    clause = _CLAUSE_END.split(stated, maxsplit=1)[0].strip()
    clause = clause or stated
    leading = _LEADING_FORMULAS.match(clause)
    if leading and not re.match(r"\s*\w", clause[leading.end() :]):
        formulas = re.findall(r"\$([^$]+)\$", leading[0])
        return ", ".join(formulas), True
    formula = _SENTENCE_END.split(clause, maxsplit=1)[0].strip('* "')
    formula = re.sub(r"\s(?:and|or)\s", ", ", formula)  # "12 or 13" states two answers
    words = re.sub(r"(?<![A-Za-z\\])(?:sqrt(?=\s*[({\d])|pi(?![A-Za-z]))", "", formula)
    return formula, not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[$]|\\[(\[]", words)


def first_readings(text: str) -> tuple[str, str, str]:
    """Return a text, its first sentence and its first clause."""
    clause = re.split(
        r"[.,;!?。，；]+(?:\s|$)?|\s(?:because|since|as|so|for|which|where)\b", text, maxsplit=1, flags=re.IGNORECASE
    )[0]
    return text, _SENTENCE_END.split(text, maxsplit=1)[0], clause
