"""Random Knights & Knaves puzzles, with disjoint training and evaluation splits.

Statements have the distribution of the K&K set (measured on its 400 test puzzles). The six kinds (plain, not, and, or,
->, <=>) are equally frequent, and people and roles are uniform. No speaker calls himself a knave, and the two parts of
a statement differ. Puzzles without a unique solution are drawn again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Literal

from rlad.data.knights_knaves.compact import render_prompt
from rlad.data.knights_knaves.puzzle import (
    CONNECTIVES,
    KNAVE,
    KNIGHT,
    MAX_PEOPLE,
    MIN_PEOPLE,
    NOT,
    Puzzle,
    Statement,
    Statements,
    consistency_table,
    solve,
)
from rlad.errors import DataError

Split = Literal["train", "evaluation"]

EVALUATION_SHARE = 0.25
"""Share of the evaluation split. It is large because small puzzles are few: of the 399 puzzles with 2 people, 1% would
leave four for evaluation; this share leaves 111.
"""

_STALLED_DRAWS = 50_000
"""Number of consecutive draws without a new puzzle after which none are left.

The rarest puzzle with 2 people is one draw in about 5,000; this is ten times as many.
"""


def split_of(puzzle: Puzzle) -> Split:
    """Return the split of a puzzle: a function of its statements only, not of seed, form, names or wording.

    Puzzles that differ only in the order of their people, or of the parts of a statement, count as different.
    """
    return "evaluation" if int(puzzle_digest(puzzle), 16) < EVALUATION_SHARE * 2**64 else "train"


def puzzle_digest(puzzle: Puzzle) -> str:
    """Return sixteen hexadecimal digits that identify the puzzle's statements, independent of names."""
    return hashlib.blake2b(render_prompt(puzzle).encode(), digest_size=8).hexdigest()


def generate_puzzles(*, people: Mapping[int, float], count: int, split: Split, seed: int) -> list[Puzzle]:
    """Generate `count` puzzles of one split in random order. Equal arguments give equal puzzles in every process.

    Puzzles are distinct. If a number of people has fewer distinct puzzles than its share requires (in practice only 2
    people), training repeats them, as a further epoch would, so that the shares hold. Evaluation raises an error,
    because repeated puzzles would overstate the evidence.

    Args:
        people: Share of puzzles by number of people (2 to 8); need not sum to 1.
        count: Total number of puzzles.
        split: Split of all puzzles.
        seed: Seed of the draws and the order.

    Raises:
        DataError: Shares or count are out of range, or evaluation has too few distinct puzzles.
    """
    if (
        count < 1
        or not people
        or any(not MIN_PEOPLE <= number <= MAX_PEOPLE or share <= 0 for number, share in people.items())
    ):
        raise DataError(
            f"generate_puzzles: expected positive shares for {MIN_PEOPLE} to {MAX_PEOPLE} people and a positive count, "
            f"got {dict(people)} and {count}"
        )
    puzzles: list[Puzzle] = []
    for number, wanted in _counts(people, count).items():
        distinct = distinct_puzzles(number, count=wanted, split=split, seed=seed)
        if len(distinct) < wanted and split == "evaluation":
            raise DataError(
                f"only {len(distinct)} distinct puzzles of {number} people exist in the evaluation split, "
                f"expected {wanted}; lower count or the share of {number} people"
            )
        puzzles += [distinct[index % len(distinct)] for index in range(wanted)]
    random.Random(f"order:{seed}").shuffle(puzzles)
    return puzzles


def distinct_puzzles(num_people: int, *, count: int, split: Split, seed: int) -> list[Puzzle]:
    """Return up to `count` distinct puzzles of one split, without names; fewer only if no more exist."""
    rng = random.Random(f"knights and knaves:{num_people}:{seed}")
    found: dict[Statements, Puzzle] = {}
    draws_since_new = 0
    while len(found) < count and draws_since_new < _STALLED_DRAWS:
        draws_since_new += 1
        statements = _draw_solvable(num_people, rng)
        if statements in found:
            continue
        puzzle = Puzzle(statements=statements, solution=solve(statements)[0])
        if split_of(puzzle) == split:
            found[statements] = puzzle
            draws_since_new = 0
    return list(found.values())


def _counts(people: Mapping[int, float], count: int) -> dict[int, int]:
    """Return integers that sum to `count` and are nearest to the shares (largest remainders)."""
    total = sum(people.values())
    exact = {number: count * share / total for number, share in sorted(people.items())}
    counts = {number: int(share) for number, share in exact.items()}
    by_remainder = sorted(exact, key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: count - sum(counts.values())]:
        counts[number] += 1
    return {number: wanted for number, wanted in counts.items() if wanted}


def _draw_solvable(num_people: int, rng: random.Random) -> Statements:
    """Draw statements with exactly one solution."""
    while True:
        statements = []
        remaining = (1 << 2**num_people) - 1
        for speaker in range(num_people):
            statement = _draw_statement(speaker, num_people, rng)
            statements.append(statement)
            remaining &= consistency_table(speaker, statement, num_people)
            if not remaining:
                break
        if remaining.bit_count() == 1:
            return tuple(statements)


def _draw_statement(speaker: int, num_people: int, rng: random.Random) -> Statement:
    kind = rng.choice((KNIGHT, NOT, *CONNECTIVES))
    first = _draw_literal(speaker, num_people, rng)
    if kind == KNIGHT:
        return first
    if kind == NOT:
        return (NOT, first)
    second = first
    while second == first:
        second = _draw_literal(speaker, num_people, rng)
    return (kind, first, second)


def _draw_literal(speaker: int, num_people: int, rng: random.Random) -> Statement:
    while True:
        literal = (rng.choice((KNIGHT, KNAVE)), rng.randrange(num_people))
        if literal != (KNAVE, speaker):  # "I am a knave" is always a contradiction.
            return literal
