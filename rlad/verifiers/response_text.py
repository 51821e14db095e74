"""Extraction of answers from response texts, shared by several verifiers."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX_OR_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*(?:\{|(?P<character>\w)))|\\.|(?P<brace>[{}])", re.DOTALL)
_PERCENT = re.compile(r"\s*\\?%")


def after_thinking(response_text: str) -> str | None:
    """Return the text after the last `</think>`, or the whole text without thinking.

    Return None if the thinking has not ended. The prompt may already have opened `<think>`.
    """
    if "<" not in response_text:
        return response_text
    tags = list(_THINK_TAG.finditer(response_text))
    if tags and not tags[-1][1]:
        return None
    return response_text[tags[-1].end() :] if tags else response_text


def last_answer_block(text: str) -> str | None:
    """Return the content of the last complete pair of `<answer>` tags; None if there is none."""
    if "<" not in text:
        return None
    tags = list(_ANSWER_TAG.finditer(text))
    for opening, closing in zip(tags[-2::-1], tags[:0:-1], strict=True):
        if closing[1] and not opening[1]:
            return text[opening.end() : closing.start()].strip()
    return None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}` or `\fbox{...}`; None if there is none.

    Braces are balanced. A percent sign after the box belongs to its number.
    """
    if "\\" not in text:
        return None
    open_braces: list[re.Match[str]] = []
    last, content = -1, None
    for token in _BOX_OR_BRACE.finditer(text):
        if token["character"]:
            last, content = token.start(), token["character"]
        elif token["box"] or token["brace"] == "{":
            open_braces.append(token)
        elif token["brace"] and open_braces:
            opening = open_braces.pop()
            if opening["box"] and opening.start() > last:
                is_percent = _PERCENT.match(text, token.end())
                last, content = (
                    opening.start(),
                    text[opening.end() : token.start()].strip() + (r"\%" if is_percent else ""),
                )
    return content
