"""Systematic misreadings of connectives, and the kinds of puzzles that each one gets wrong.

Teachers trained on traces with such a reading are wrong on a kind of puzzle and right on the others
(`rlad.starters.recipes`). The readings are nested: the second contains the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rlad.data.knights_knaves.puzzle import Puzzle, Statements, solve

Reading = Literal["if_then", "if_then_or"]

READINGS: Mapping[Reading, Mapping[str, str]] = {
    "if_then": {"->": "<=>"},
    "if_then_or": {"->": "<=>", "or": "and"},
}
"""Connectives that a reading takes for others: "if ... then" for "if and only if"; and in the second also "or" for
"and". Of 1,000 evaluation puzzles with the starters' numbers of people, the first gets 20% wrong, and the second 49%.
"""

PLAIN = "plain"
"""Kind of a puzzle that every reading solves."""


def misread(statements: Statements, reading: Reading) -> Statements:
    """Return the statements as a reading takes them. They may have no solution, or several."""
    taken = READINGS[reading]
    return tuple((taken.get(kind, kind), *operands) for kind, *operands in statements)


def kind_of(puzzle: Puzzle) -> str:
    """Return the name of the first reading whose answer to the puzzle is wrong, or `plain`.

    The answer of a reading is its first consistent candidate; without one, it has no answer.
    """
    for reading in READINGS:
        if solve(misread(puzzle.statements, reading))[:1] != [puzzle.solution]:
            return reading
    return PLAIN
