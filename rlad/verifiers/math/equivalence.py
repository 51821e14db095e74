"""Equivalence of mathematical answers: math-verify, with checks of its weak points before and after."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from rlad.verifiers.math.normalization import canonical
from rlad.verifiers.math.sets import as_intervals, builder_condition, is_builder, is_chain

# With its own timeouts off, math-verify warns at every call that the caller must provide one. Verifiers run in killable
# processes, so the warning does not apply.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# LaTeX separators of groups of three digits; math-verify handles plain commas.
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\\[,;!: ]|\{,\}|~)\d{3})+(?!\d)")
_NUMERIC_SUBSCRIPT = re.compile(r"[0-9A-Z]+\s*_\s*\{?\s*\d+")
_SPACED_LIST = re.compile(r"^-?\d+(?:,\s+-?\d+)+$")
_TIGHT_LIST = re.compile(r"^\d{1,3}(?:,\d{3})+$")
_WORDS_BETWEEN = re.compile(
    r"\d[^\d{}]*(?:\\text\s*\{[^{}]*[a-z]{2,}[^{}]*\}|\b(?:to|and|or|out of|hours?|minutes?)\b)[^\d]*\d"
)
_ASSIGNMENT = re.compile(r"^(\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z](?:,\s*[a-z])*\))?)\s*=(?!=)\s*([^=<>]+)$")
_TRUNCATED = re.compile(r"\\(?:ldots|dots|cdots)|\.\.\.")
_LOGARITHM = re.compile(r"\\log(?=\s*[({|]*\s*[a-z])")
# Relative difference above which decimals differ; exact values must be equal.
_DECIMAL_TOLERANCE = 1e-5
_EXACT_TOLERANCE = 1e-25  # of irrational numbers without a decimal
_DECIMAL = re.compile(r"\d?\.\d|\\%|%|dots|\\approx|\\circ")
_DERIVED = re.compile(r"[A-Za-z]'+|\\frac\{d\w*\}\{d\w+\}")


def parse_formula(latex: str) -> list[Any]:
    """Parse a text that contains only mathematics."""
    latex = latex.strip().strip("$").strip()
    latex = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), latex)
    return parse_prose(f"\\boxed{{{latex}}}") if latex else []


def parse_prose(text: str) -> list[Any]:
    """Parse the mathematics in a text with math-verify."""
    from math_verify import parse  # Imported here because importing sympy is slow.

    return list(parse(text, parsing_timeout=None))


def are_equal(gold: list[Any], parsed: list[Any]) -> bool:
    """Compare parsed answers with math-verify. Reject those that differ at high precision or in kind."""
    from math_verify import verify

    return bool(verify(gold, parsed, timeout_seconds=None, allow_set_relation_comp=True))


def are_equivalent(expected: str, given: str, gold: list[Any], parsed: list[Any]) -> bool:
    """Compare two cleaned answers.

    Args:
        expected: Text of the expected answer.
        given: Text of the response's answer.
        gold: The expected answer, parsed.
        parsed: The response's answer, parsed.
    """
    expected_form, given_form = canonical(expected), canonical(given)
    if expected_form == given_form:
        return True
    if _is_rejected(expected, given):
        return False
    decided = _compare_forms(expected, given)
    if decided is not None:
        return decided
    if are_equal(gold, parsed):
        return not _differ_exactly(f"{expected} {given}", gold, parsed)
    return _second_opinion(expected, given, gold, parsed)


def _is_rejected(expected: str, given: str) -> bool:
    """Return True for pairs that math-verify accepts by mistake."""
    subscripts = [sorted(re.findall(_NUMERIC_SUBSCRIPT, canonical(text))) for text in (expected, given)]
    if subscripts[0] and subscripts[0] != subscripts[1]:
        return True
    if "'" in expected + given or r"\frac{d" in expected:
        derivatives = [sorted(_DERIVED.findall(canonical(text))) for text in (expected, given)]
        if derivatives[0] and derivatives[0] != derivatives[1] and (derivatives[1] or "'" in expected):
            return True
        if derivatives[1] and not derivatives[0] and "'" in given:
            return True
    if r"\angle" in expected and "=" not in expected + given and r"\circ" not in expected + given:
        names = [re.sub(r"\\angle|\W", "", text) for text in (expected, given)]
        return names[0] not in (names[1], names[1][::-1])  # as a product, the order of the points would not count
    if _TRUNCATED.search(expected) and not re.fullmatch(r"-?\d*\.\d+\s*(?:\\l?dots|\.\.\.)", expected):
        return True  # A sequence with an ellipsis is compared only as text.
    without_powers = re.sub(r"\^\s*(?:\{\s*-?\d+\s*\}|-?\d)", "", given)
    return bool(_WORDS_BETWEEN.search(without_powers) and not re.search(r"\d\D+\d|,", expected))


def _compare_forms(expected: str, given: str) -> bool | None:
    """Compare sets, assignments and lists, which have to be rewritten first; None for others."""
    for text in (expected, given):
        if is_builder(text) and (builder_condition(text) is None or as_intervals(text) is None):
            return None if text is given and not is_builder(expected) else False
    intervals = as_intervals(expected), as_intervals(given)
    if (is_builder(expected) or is_builder(given) or _is_condition(expected) or _is_condition(given)) and any(
        intervals
    ):
        forms = intervals[0] or _membership(expected), intervals[1] or _membership(given)
        if not all(_is_interval(form) for form in forms):
            return False
        return are_equal(parse_formula(forms[0]), parse_formula(forms[1]))
    assignments = _ASSIGNMENT.match(expected), _ASSIGNMENT.match(given)
    if assignments[0] and assignments[1] and canonical(assignments[0][1]) == canonical(assignments[1][1]):
        values = assignments[0][2], assignments[1][2]
        return are_equivalent(*values, parse_formula(values[0]), parse_formula(values[1]))
    if _SPACED_LIST.match(expected) and _TIGHT_LIST.match(given):
        return are_equal(parse_formula(expected), parse_formula(given.replace(",", ", ")))
    return _compare_identities(expected, given)


def _compare_identities(expected: str, given: str) -> bool | None:
    """Compare an expected equation that always holds, such as `(-2a)^3 = -8a^3`, side by side."""
    if expected.count("=") != 1 or given.count("=") != 1 or re.search(r"[<>]|\\[lg]e|\\ne", expected):
        return None
    left, right = expected.split("=")
    if _ASSIGNMENT.match(expected) or not are_equal(parse_formula(left), parse_formula(right)):
        return None
    sides = given.split("=")
    return are_equal(parse_formula(left), parse_formula(sides[0])) and are_equal(
        parse_formula(right), parse_formula(sides[1])
    )


def _is_condition(text: str) -> bool:
    return bool(
        re.search(r"\\ne|!=", text)
        or is_chain(text)
        or (
            re.search(r"[<>]|\\[lg]e", text)
            and re.search(r"\b(?:or|and)\b|[或且]|\\lor|\\vee|\\land|\\wedge|^\\\{", text)
        )
    )


def _membership(text: str) -> str:
    return re.sub(r"^[a-zA-Z]\s*\\in\s*", "", text)


def _is_interval(text: str) -> bool:
    return bool(re.match(r"^\s*(?:[(\[].*,.*[)\]]|\\mathbb|\\\{.*\\setminus)", text))


def _differ_exactly(texts: str, gold: list[Any], parsed: list[Any]) -> bool:
    """Return True for two numbers that differ, although they are equal when rounded.

    A percentage may equal its number or its hundredth, so only the ratio 100 is allowed then.
    """
    from sympy import Basic, FiniteSet

    if not gold or not parsed or not isinstance(gold[0], Basic) or not isinstance(parsed[0], Basic):
        return False
    pair = gold[0], parsed[0]
    if all(isinstance(side, FiniteSet) for side in pair):
        sides: list[list[Any]] = [sorted(side.args, key=str) for side in pair]
        if len(sides[0]) != len(sides[1]) or not all(item.is_number for side in sides for item in side):
            return False
        values = [sorted((_number(item) for item in side), key=lambda item: (item.real, item.imag)) for side in sides]
        return any(_is_different(*items) for items in zip(*values, strict=True))
    if not all(getattr(side, "is_number", False) for side in pair):
        return False
    exact = [side.doit() for side in pair]
    if all(side.is_Rational for side in exact) and not _DECIMAL.search(texts):
        return bool(exact[0] != exact[1])
    first, second = _number(exact[0]), _number(exact[1])
    if r"%" in texts and any(not _is_different(first * scale, second) for scale in (100, 0.01)):
        return False
    return _is_different(first, second, _DECIMAL_TOLERANCE if _DECIMAL.search(texts) else _EXACT_TOLERANCE)


def _number(expression: Any) -> Any:
    import mpmath  # type: ignore[import-untyped]

    value = expression.doit().evalf(40)
    number = (
        mpmath.mpmathify(value)
        if value.is_Float
        else mpmath.mpc(*(part._to_mpmath(140) for part in value.as_real_imag()))
    )
    return mpmath.mpc(number)


def _is_different(first: Any, second: Any, tolerance: float = _DECIMAL_TOLERANCE) -> bool:
    import mpmath

    scale = max(abs(first), abs(second))
    return bool(mpmath.isfinite(scale) and abs(first - second) > tolerance * scale)


def _second_opinion(expected: str, given: str, gold: list[Any], parsed: list[Any]) -> bool:
    """Compare again where the parser is known to be weak: complex numbers, names of results, natural logarithms."""
    if _are_numerically_equal(gold, parsed):
        return True
    for named, other in ((expected, given), (given, expected)):
        match = _ASSIGNMENT.match(named)
        if match and match[2].count(r"\pm") == 1 and "=" not in other and r"\pm" not in other:
            values = ", ".join(match[2].replace(r"\pm", sign) for sign in "+-")
            return are_equal(parse_formula(values), parse_formula(other))
    if _LOGARITHM.search(given) and r"\ln" in expected and r"\ln" not in given:
        return are_equal(gold, parse_formula(_LOGARITHM.sub(r"\\ln ", given)))
    return False


def _are_numerically_equal(gold: Sequence[Any], parsed: Sequence[Any]) -> bool:
    """Compare two complex numbers in which `i` and `e` were read as variables."""
    import mpmath
    from sympy import Basic, E, Expr, I, Symbol

    if not gold or not parsed or not isinstance(gold[0], Expr) or not isinstance(parsed[0], Expr):
        return False
    constants = {Symbol("i"): I, Symbol("e"): E}
    sides: list[Basic] = [
        side.subs({symbol: constants[Symbol(str(symbol))] for symbol in side.free_symbols if str(symbol) in ("i", "e")})
        for side in (gold[0], parsed[0])
    ]
    if not all(side.is_number for side in sides):
        return False
    if not any(side.free_symbols or side.has(I) for side in (gold[0], parsed[0])):
        return False
    first, second = (_number(side) for side in sides)
    return bool(mpmath.isfinite(first) and abs(first - second) <= 1e-25 * max(abs(first), abs(second)))
