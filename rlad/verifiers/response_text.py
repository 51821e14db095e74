"""Where a response says its answer: what several verifiers ask of a text."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX_OR_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*(?:\{|(?P<character>\w)))|\\.|(?P<brace>[{}])", re.DOTALL)
_PERCENT = re.compile(r"\s*\\?%")


def after_thinking(response_text: str) -> str | None:
    """What stands after the last `</think>`, or all where nothing is thought; None where thinking has not ended.

    The prompt may or may not have opened `<think>` already.
    """
    tags = list(_THINK_TAG.finditer(response_text))
    if tags and not tags[-1][1]:
        return None
    return response_text[tags[-1].end() :] if tags else response_text


def last_answer_block(text: str) -> str | None:
    """What the last complete pair of `<answer>` tags encloses; None where there is no pair."""
    tags = list(_ANSWER_TAG.finditer(text))
    for opening, closing in zip(tags[-2::-1], tags[:0:-1], strict=True):
        if closing[1] and not opening[1]:
            return text[opening.end() : closing.start()].strip()
    return None


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` or `\fbox{...}` encloses, braces balanced; None where there is none.

    A percent sign behind the box belongs to the number in it.
    """
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
