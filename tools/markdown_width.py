"""Width of the prose in Markdown, without the lines that cannot be wrapped: code, tables, headings, links, HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FENCE = re.compile(r"^\s*(?:>\s*)*(?:[-*+]\s+|\d+[.)]\s+)?(`{3,}|~{3,})")
_TABLE_ROW = re.compile(r"^\s*(?:>\s*)*\|")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s")
_INDENTED_CODE = re.compile(r"^(?: {4}|\t)")
_LIST_ITEM = re.compile(r"^\s*(?:>\s*)*(?:[-*+]|\d+[.)])\s+")
_LINK = re.compile(r"!?\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])|<?https?://[^\s>]+>?")
_LINK_TARGET = re.compile(r"^\s{0,3}\[[^\]]+\]:\s")
_HTML_LINE = re.compile(r"^\s*<[A-Za-z/!][^>]*>(?:.*>)?\s*$")


def long_prose_lines(source: str, max_columns: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the width of each line of prose that is wider than `max_columns`.

    Not prose: fenced and indented code, table rows, headings, link targets, lines of HTML, and lines that hold a single
    unbreakable word or link (with the mark of a list item before it, and punctuation after it).
    """
    fence, front_matter, in_list = "", False, False
    for number, line in enumerate(source.splitlines(), start=1):
        if line.strip() == "---" and (number == 1 or front_matter):
            front_matter = number == 1
            continue
        if front_matter:
            continue
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark.group(1)
            elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        if fence:
            continue
        if line.strip():
            in_list = bool(_LIST_ITEM.match(line)) or (in_list and line.startswith((" ", "\t")))
        if len(line) > max_columns and not _cannot_wrap(line, in_list=in_list):
            yield number, len(line)


def _cannot_wrap(line: str, *, in_list: bool) -> bool:
    if any(shape.match(line) for shape in (_TABLE_ROW, _HEADING, _LINK_TARGET, _HTML_LINE)):
        return True
    if _INDENTED_CODE.match(line) and not in_list:
        return True
    words = _LIST_ITEM.sub("", _LINK.sub("link", line)).split()
    return len(words) <= 1
