"""Compact notation of Knights & Knaves for tiny models: one character per token, 26 symbols besides the special tokens.

A prompt is `A:b;B:A&c;C:~A;?`. A says "B is a knave", B says "A is a knight and C is a knave", C says "A is not a
knight". Upper case is a knight, lower case a knave, `~` not, `&` and, `|` or, `>` if ... then, `=` if and only if. `~A`
and `a` have the same meaning but are different statements in the K&K set, so both exist.

A response is a chain of thought that can be checked step by step. It lists candidate answers in a fixed order, each
with the truth values of the statements in order of speakers, until one contradicts its speaker (`x`). After `=` follows
the answer. For example, `A:b;B:A=B;?` has the response `TT:FxTF:TF=TF`.
"""

from __future__ import annotations

import random
import re

from rlad.data.knights_knaves.puzzle import (
    CONNECTIVES,
    KNAVE,
    KNIGHT,
    MAX_PEOPLE,
    NOT,
    Puzzle,
    Solution,
    Statement,
    Statements,
    candidates,
    evaluate,
    validate_statements,
)
from rlad.data.knights_knaves.readings import Reading, misread
from rlad.errors import DataError

PERSONS = "ABCDEFGH"
ALPHABET = PERSONS + PERSONS.lower() + ":;?=&|>~Tx"
"""All characters of prompts and responses. F is a person in a prompt and "false" in a response. The tokenizer adds its
special tokens.
"""

_CONNECTIVE_SYMBOLS = dict(zip(CONNECTIVES, "&|>=", strict=True))
_CONNECTIVES_BY_SYMBOL = {symbol: connective for connective, symbol in _CONNECTIVE_SYMBOLS.items()}
_CLAUSE = re.compile(
    r"([A-H]):(?:(?P<negation>~)?(?P<only>[A-Ha-h])|(?P<left>[A-Ha-h])(?P<connective>[&|>=])(?P<right>[A-Ha-h]))"
)

assert len(PERSONS) == MAX_PEOPLE


def render_prompt(puzzle: Puzzle) -> str:
    """Return the puzzle as a prompt, for example `A:b;B:A&c;C:~A;?`."""
    return (
        "".join(
            f"{PERSONS[speaker]}:{_render_statement(statement)};" for speaker, statement in enumerate(puzzle.statements)
        )
        + "?"
    )


def _render_statement(statement: Statement) -> str:
    kind, *operands = statement
    if kind == KNIGHT:
        return PERSONS[operands[0]]
    if kind == KNAVE:
        return PERSONS[operands[0]].lower()
    if kind == NOT:
        return "~" + _render_statement(operands[0])
    left, right = map(_render_statement, operands)
    return left + _CONNECTIVE_SYMBOLS[kind] + right


def parse_prompt(text: str) -> Statements:
    """Return the statements of a prompt. Inverse of `render_prompt`.

    Raises:
        DataError: The text is not in compact notation.
    """
    *clauses, end = text.split(";")
    matches = [_CLAUSE.fullmatch(clause) for clause in clauses]
    if end != "?" or "".join(match[1] for match in matches if match) != PERSONS[: len(clauses)]:
        raise DataError(
            f"expected a compact puzzle such as A:b;B:A&c;C:~A;? with speakers in order, got {text[:200]!r}"
        )
    statements = tuple(_parse_statement(match) for match in matches if match)
    validate_statements(statements)
    return statements


def _parse_statement(match: re.Match[str]) -> Statement:
    if match["connective"]:
        return (
            _CONNECTIVES_BY_SYMBOL[match["connective"]],
            _parse_literal(match["left"]),
            _parse_literal(match["right"]),
        )
    literal = _parse_literal(match["only"])
    return (NOT, literal) if match["negation"] else literal


def _parse_literal(character: str) -> Statement:
    return (KNIGHT if character.isupper() else KNAVE, PERSONS.index(character.upper()))


def render_answer(solution: Solution) -> str:
    """Return one letter per person, in order: T for a knight, F for a knave."""
    return "".join("T" if is_knight else "F" for is_knight in solution)


def solution_trace(puzzle: Puzzle) -> str:
    """Return the correct response to the puzzle's prompt, without the end-of-sequence token."""
    trace = _trace(puzzle.statements, random.Random(0), slip_probability=0.0)
    assert trace is not None  # A puzzle has a solution.
    return trace


def misread_trace(puzzle: Puzzle, reading: Reading) -> str | None:
    """Return the response of a reader who takes some connectives for others; None if that reading has no solution."""
    return _trace(misread(puzzle.statements, reading), random.Random(0), slip_probability=0.0)


def careless_trace(
    puzzle: Puzzle,
    rng: random.Random,
    *,
    misread_probability: tuple[float, float] = (0.1, 0.5),
    slip_probability: float = 0.01,
) -> str:
    """Return the response of a careless reader, which is well formed but often wrong.

    Training on such traces teaches a bad habit to a student that can solve puzzles.

    Args:
        puzzle: The puzzle.
        rng: Source of randomness.
        misread_probability: Range from which each trace draws the probability of misreading a statement: a knight as a
            knave, an overlooked `not`, or one connective as another. A reading without a solution is drawn again.
        slip_probability: Probability of getting a truth value wrong.
    """
    probability = rng.uniform(*misread_probability)
    while True:
        reading = tuple(
            _misread(statement, rng) if rng.random() < probability else statement for statement in puzzle.statements
        )
        trace = _trace(reading, rng, slip_probability=slip_probability)
        if trace is not None:
            return trace


def _misread(statement: Statement, rng: random.Random) -> Statement:
    kind, *operands = statement
    if kind in CONNECTIVES:
        return (rng.choice([connective for connective in CONNECTIVES if connective != kind]), *operands)
    if kind == NOT:
        return tuple(operands[0])
    return (KNAVE if kind == KNIGHT else KNIGHT, *operands)


def _trace(statements: Statements, rng: random.Random, *, slip_probability: float) -> str | None:
    """Try candidates until one is consistent with every statement. Return None if none is."""
    steps: list[str] = []
    for candidate in candidates(len(statements)):
        steps.append(render_answer(candidate) + ":")
        for is_knight, statement in zip(candidate, statements, strict=True):
            value = evaluate(statement, candidate)
            if slip_probability and rng.random() < slip_probability:
                value = not value
            steps.append("T" if value else "F")
            if value != is_knight:
                steps.append("x")
                break
        else:
            return "".join(steps) + "=" + render_answer(candidate)
    return None
