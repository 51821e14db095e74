"""Statement grammar of the K&K set, and a solver that proves that a solution is unique.

Every person is a knight, who tells the truth, or a knave, who lies, and makes one statement. A statement is a tuple as
in the set's `statements` column: `("telling-truth", i)` (person i is a knight), `("lying", i)` (a knave), `("not",
literal)`, or `(connective, literal, literal)`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlad.errors import DataError

Statement = tuple[Any, ...]
Statements = tuple[Statement, ...]
Solution = tuple[bool, ...]

KNIGHT, KNAVE, NOT = "telling-truth", "lying", "not"
CONNECTIVES = ("and", "or", "->", "<=>")
MIN_PEOPLE, MAX_PEOPLE = 2, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """Puzzle with exactly one solution.

    Attributes:
        statements: Statement of each person, in order of speakers.
        solution: True for a knight, in order of speakers.
        names: Names of the speakers, for the form in sentences.

    Raises:
        DataError: A statement is outside the grammar, the number of solutions is not one, the solution differs from
            `solution`, or the names are not distinct or not as many as the people.
    """

    statements: Statements
    solution: Solution
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        validate_statements(self.statements)
        solutions = solve(self.statements)
        if len(solutions) != 1:
            raise DataError(
                f"a puzzle must have exactly one solution, this one has {len(solutions)}: {self.statements!r}"
            )
        if self.solution != solutions[0]:
            raise DataError(f"the solution of {self.statements!r} must be {solutions[0]}, got {self.solution}")
        if self.names is not None and (
            len(self.names) != len(self.statements) or len(set(self.names)) != len(self.names)
        ):
            raise DataError(
                f"a puzzle of {len(self.statements)} people requires as many distinct names, got {self.names}"
            )

    @property
    def num_people(self) -> int:
        """Number of people."""
        return len(self.statements)


def puzzle_from_statements(statements: str | Sequence[Any], names: Sequence[str] | None = None) -> Puzzle:
    """Return the puzzle of the statements, after proving that its solution is unique.

    Args:
        statements: Nested tuples (or lists, as in JSON), or their Python literal, as in the set's `statements` column.
        names: Names of the speakers.

    Raises:
        DataError: The statements are unreadable, outside the grammar, or do not have exactly one solution.
    """
    if isinstance(statements, str):
        try:
            statements = ast.literal_eval(statements)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise DataError(
                f"statements must be nested tuples, written as a Python literal, got {statements[:200]!r}"
            ) from error
    as_tuples = _as_tuples(statements)
    validate_statements(as_tuples)
    solutions = solve(as_tuples)
    if len(solutions) != 1:
        raise DataError(f"a puzzle must have exactly one solution, this one has {len(solutions)}: {as_tuples!r}")
    return Puzzle(statements=as_tuples, solution=solutions[0], names=None if names is None else tuple(names))


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def validate_statements(statements: Statements) -> None:
    """Check statements against the grammar.

    There are 2 to 8 people, and a statement has at most one connective or negation.

    Raises:
        DataError: A statement is outside the grammar. The message names its person.
    """
    if not isinstance(statements, tuple) or not MIN_PEOPLE <= len(statements) <= MAX_PEOPLE:
        count = len(statements) if isinstance(statements, tuple) else type(statements).__name__
        raise DataError(
            f"a puzzle must have one statement for each of {MIN_PEOPLE} to {MAX_PEOPLE} people, got {count}"
        )
    for speaker, statement in enumerate(statements):
        if not _is_statement(statement, len(statements)):
            raise DataError(
                f"person {speaker}: expected ('telling-truth', i), ('lying', i), ('not', literal), "
                f"or one of {CONNECTIVES} with two literals, where i is below {len(statements)}; got {statement!r}"
            )


def _is_statement(statement: Any, num_people: int) -> bool:
    if not isinstance(statement, tuple) or not statement or not isinstance(statement[0], str):
        return False
    kind, *operands = statement
    if kind == NOT:
        return len(operands) == 1 and _is_literal(operands[0], num_people)
    if kind in CONNECTIVES:
        return len(operands) == 2 and all(_is_literal(operand, num_people) for operand in operands)
    return _is_literal(statement, num_people)


def _is_literal(statement: Any, num_people: int) -> bool:
    return (
        isinstance(statement, tuple)
        and len(statement) == 2
        and statement[0] in (KNIGHT, KNAVE)
        and type(statement[1]) is int  # isinstance would accept True and False
        and 0 <= statement[1] < num_people
    )


def evaluate(statement: Statement, assignment: Sequence[bool]) -> bool:
    """Return the truth value of a statement if person i is a knight exactly if `assignment[i]` is True."""
    kind, *operands = statement
    if kind == KNIGHT:
        return bool(assignment[operands[0]])
    if kind == KNAVE:
        return not assignment[operands[0]]
    values = [evaluate(operand, assignment) for operand in operands]
    if kind == NOT:
        return not values[0]
    if kind == "and":
        return values[0] and values[1]
    if kind == "or":
        return values[0] or values[1]
    if kind == "->":
        return not values[0] or values[1]
    if kind == "<=>":
        return values[0] == values[1]
    raise DataError(f"unknown statement kind {kind!r}; expected one of {(KNIGHT, KNAVE, NOT, *CONNECTIVES)}")


@lru_cache(maxsize=MAX_PEOPLE + 1)
def candidates(num_people: int) -> tuple[Solution, ...]:
    """Return all assignments, counting down in binary from all knights; the first person is the highest digit."""
    return tuple(
        tuple(bool(number >> (num_people - 1 - person) & 1) for person in range(num_people))
        for number in reversed(range(2**num_people))
    )


@lru_cache(maxsize=1 << 14)
def truth_table(statement: Statement, num_people: int) -> int:
    """Return the truth table of a statement: bit k is its truth value under `candidates(num_people)[k]`.

    Tables are cached, since there are few distinct statements.
    """
    return sum(int(evaluate(statement, assignment)) << index for index, assignment in enumerate(candidates(num_people)))


def consistency_table(speaker: int, statement: Statement, num_people: int) -> int:
    """Return the candidates that are consistent with a statement, as bits.

    Bit k is set if the speaker's role under candidate k matches the statement: knights make true statements, knaves
    false ones.
    """
    everything: int = (1 << 2**num_people) - 1
    return everything & ~(truth_table(statement, num_people) ^ truth_table((KNIGHT, speaker), num_people))


def solve(statements: Statements) -> list[Solution]:
    """Return all assignments with true statements of knights and false ones of knaves, in the order of `candidates`."""
    num_people = len(statements)
    remaining = (1 << 2**num_people) - 1
    for speaker, statement in enumerate(statements):
        remaining &= consistency_table(speaker, statement, num_people)
    return [assignment for index, assignment in enumerate(candidates(num_people)) if remaining >> index & 1]
