"""Sets of numbers that are written as inequalities or in set-builder notation, rewritten as intervals."""

from __future__ import annotations

import re

_BUILDER = re.compile(
    r"^(?:[A-Z]\s*=\s*)?\\?\{\s*(?P<variable>[a-zA-Z])\s*(?:\\in\s*(?:\\mathbb\s*\{?R\}?|R)\s*)?(?:\\mid|\\vert|\||:|\\colon)\s*(?P<condition>.+?)\s*\\?\}$"
)
_ANY_BUILDER = re.compile(r"^(?:[A-Z]\s*=\s*)?\\?\{.*(?:\\mid|\\vert|\||:|\\colon).*\\?\}$")
_RELATION = re.compile(r"(\\leq?slant|\\geq?slant|\\leq?|\\geq?|\\neq?|\\lt|\\gt)(?![A-Za-z])|(<=|>=|!=|<|>)")
_RELATIONS = {
    "<": "<", r"\lt": "<", "<=": "<=", r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\leslant": "<=",
    ">": ">", r"\gt": ">", ">=": ">=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\geslant": ">=",
    "!=": "!=", r"\ne": "!=", r"\neq": "!=",
}  # fmt: skip
_OR = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:or|或)\s*\}|\\lor|\\vee|(?<![A-Za-z])or(?![A-Za-z])|或)\s*", re.IGNORECASE
)
_AND = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:and|且)\s*\}|\\land|\\wedge|(?<![A-Za-z])and(?![A-Za-z])|且)\s*", re.IGNORECASE
)
_BELOW = re.compile(r"\(-\\infty, (?P<end>.+)(?P<bracket>[)\]])")
_ABOVE = re.compile(r"(?P<bracket>[(\[])(?P<start>.+), \\infty\)")
_VARIABLE = re.compile(r"[a-zA-Z]|\\[a-z]+")
_SPACES = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~")


def is_chain(latex: str) -> bool:
    """Return True for a text with several relations, such as `1 < x < 2`."""
    return len(_RELATION.findall(latex)) > 1


def builder_condition(latex: str) -> str | None:
    """Return the condition of a set in set-builder notation; None for any other text."""
    match = _BUILDER.match(_SPACES.sub(" ", latex))
    return match["condition"] if match else None


def is_builder(latex: str) -> bool:
    """Return True for a set in set-builder notation."""
    return bool(_ANY_BUILDER.match(latex))


def as_intervals(latex: str) -> str | None:
    """Return an inequality, a disjunction of inequalities or a set of them as a union of intervals.

    Return None if the text is none of these.
    """
    latex = _SPACES.sub(" ", latex)
    condition = builder_condition(latex)
    if condition is None:
        if is_builder(latex) or not _RELATION.search(latex):
            return None
        braced = re.fullmatch(r"\\\{([^,{}]+)\\\}", latex)
        condition = braced[1] if braced else latex
    condition = re.sub(r",?\s*[a-zA-Z]\s*\\in\s*(?:\\mathbb\s*\{?R\}?|R)$", "", condition)
    parts = [_conjunction(part) for part in _OR.split(condition)]
    return None if None in parts else r" \cup ".join(part for part in parts if part)


def _conjunction(text: str) -> str | None:
    """Return an inequality, or a lower and an upper bound joined by "and", as an interval."""
    bounds = _AND.split(text)
    if len(bounds) == 1:
        return _interval(text)
    if (
        len(bounds) != 2
        or len({tuple(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", bound)) for bound in bounds}) > 1
    ):
        return None
    intervals = [_interval(bound) or "" for bound in bounds]
    for first, second in (intervals, intervals[::-1]):
        above, below = _ABOVE.fullmatch(first), _BELOW.fullmatch(second)
        if above and below:
            return f"{above['bracket']}{above['start']}, {below['end']}{below['bracket']}"
    return None


def _interval(inequality: str) -> str | None:
    pieces = [piece.strip() for piece in _RELATION.split(inequality) if piece is not None]
    relations = [_RELATIONS.get(piece) for piece in pieces[1::2]]
    terms = pieces[::2]
    if None in relations or "" in terms or any(re.search(r"=|,|\||\\in(?![a-z])|\\text", term) for term in terms):
        return None
    if len(terms) == 2:
        return _half_line(terms[0], relations[0] or "", terms[1])
    if len(terms) != 3 or not _VARIABLE.fullmatch(terms[1]) or _has_variable(terms[0]) or _has_variable(terms[2]):
        return None
    if relations[0] in (">", ">=") and relations[1] in (">", ">="):
        terms, relations = terms[::-1], relations[::-1]
        relations = [(relation or "").replace(">", "<") for relation in relations]
    if not set(relations) <= {"<", "<="}:
        return None
    return f"{'[' if relations[0] == '<=' else '('}{terms[0]}, {terms[2]}{']' if relations[1] == '<=' else ')'}"


def _half_line(left: str, relation: str, right: str) -> str | None:
    if not _VARIABLE.fullmatch(left):
        left, right = right, left
        relation = relation.translate(str.maketrans("<>", "><"))
    if not _VARIABLE.fullmatch(left) or left in (r"\pi", "e", "i") or _has_variable(right):
        return None
    match relation:
        case "<":
            return rf"(-\infty, {right})"
        case "<=":
            return rf"(-\infty, {right}]"
        case ">":
            return rf"({right}, \infty)"
        case ">=":
            return rf"[{right}, \infty)"
    return rf"(-\infty, {right}) \cup ({right}, \infty)"


def _has_variable(term: str) -> bool:
    bare = re.sub(r"\\[a-zA-Z]+", "", term)
    return bool(re.search(r"[a-df-hj-zA-Z]", bare))
