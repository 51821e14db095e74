"""Canonical forms of mathematical answers, for a majority vote."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rlad.verifiers.math.sets import as_intervals, is_builder

_RATIONAL = re.compile(r"-?\d+(?:/\d+)?")
# Maximum relative difference of a fraction and its decimal.
_ROUNDING = Fraction(1, 1_000_000)


def canonical_answer(text: str, answer: Any) -> str:
    """Return one text for answers that are equal by sight.

    Args:
        text: The cleaned LaTeX; empty if the answer was found in prose.
        answer: The parsed answer.
    """
    from sympy import Basic, Eq, Expr, Symbol, nsimplify  # Imported here because the import is slow.

    if isinstance(answer, Eq) and isinstance(answer.lhs, Symbol) and getattr(answer.rhs, "is_number", False):
        answer = answer.rhs
    if is_builder(text):
        return as_intervals(text) or text
    if isinstance(answer, Basic) and answer.is_number:
        return str(nsimplify(answer.doit(), rational=True))
    if not text or isinstance(answer, Expr):
        return str(answer)
    return re.sub(r"\s+", " ", as_intervals(text) or text).strip()


def compare_numbers(first: str, second: str) -> bool | None:
    """Compare two canonical rational numbers; None if one of the texts is not a rational number.

    A decimal equals the fraction that it rounds (`333333/1000000` and `1/3`). All other numbers are compared exactly.
    """
    if not _RATIONAL.fullmatch(first) or not _RATIONAL.fullmatch(second):
        return None
    values = Fraction(first), Fraction(second)
    if _is_decimal(values[0]) == _is_decimal(values[1]):
        return values[0] == values[1]
    return abs(values[0] - values[1]) <= _ROUNDING * max(abs(value) for value in values)


def _is_decimal(value: Fraction) -> bool:
    """Return True if the decimal notation ends."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1
