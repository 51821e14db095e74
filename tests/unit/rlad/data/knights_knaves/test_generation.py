"""Generated puzzles: distribution, determinism, and disjoint splits."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from rlad.data.knights_knaves import compact
from rlad.data.knights_knaves.generate import distinct_puzzles, generate_puzzles, split_of
from rlad.data.knights_knaves.puzzle import puzzle_from_statements
from rlad.errors import DataError

ALL_SIZES = dict.fromkeys(range(2, 9), 1.0)


def test_shares_and_count_are_met_exactly() -> None:
    puzzles = generate_puzzles(people={2: 1, 3: 4, 4: 5}, count=997, split="train", seed=3)
    assert Counter(puzzle.num_people for puzzle in puzzles) == {
        2: 100,
        3: 399,
        4: 498,
    }  # 99.7, 398.8, 498.5 by largest remainder
    assert len(set(puzzles)) == 997


def test_puzzle_sizes_are_in_random_order() -> None:
    sizes = [puzzle.num_people for puzzle in generate_puzzles(people={3: 1, 4: 1}, count=200, split="train", seed=0)]
    assert 60 < sum(left != right for left, right in pairwise(sizes)) < 140


def test_equal_arguments_give_equal_puzzles_in_another_process() -> None:
    arguments = "people={2: 0.2, 5: 0.8}, count=40, split='evaluation', seed=11"
    program = (
        "from rlad.data.knights_knaves.compact import render_prompt\nfrom rlad.data.knights_knaves.generate import "
        "generate_puzzles\n"
        f"print('\\n'.join(map(render_prompt, generate_puzzles({arguments}))))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    here = [
        compact.render_prompt(puzzle)
        for puzzle in generate_puzzles(people={2: 0.2, 5: 0.8}, count=40, split="evaluation", seed=11)
    ]
    assert printed == here
    assert here != [
        compact.render_prompt(puzzle)
        for puzzle in generate_puzzles(people={2: 0.2, 5: 0.8}, count=40, split="evaluation", seed=12)
    ]


def test_training_and_evaluation_share_no_puzzle_for_any_seeds() -> None:
    train = {
        puzzle.statements
        for seed in range(3)
        for puzzle in generate_puzzles(people=ALL_SIZES, count=1000, split="train", seed=seed)
    }
    evaluation = {
        puzzle.statements
        for seed in range(3)
        for puzzle in generate_puzzles(people={2: 0.2, 3: 1, 6: 1}, count=300, split="evaluation", seed=seed)
    }
    assert not train & evaluation


def test_split_depends_on_the_statements_alone() -> None:
    for puzzle in distinct_puzzles(4, count=20, split="evaluation", seed=0):
        assert split_of(replace(puzzle, names=("Mia", "Zoey", "Liam", "Noah"))) == "evaluation"


def test_two_people_have_399_puzzles_of_which_111_are_for_evaluation() -> None:
    train = distinct_puzzles(2, count=10_000, split="train", seed=0)
    evaluation = distinct_puzzles(2, count=10_000, split="evaluation", seed=5)
    assert len(train) + len(evaluation) == 399
    assert len(evaluation) == 111
    # Independent count: all pairs of the 3 + 3 + 4 * 3 * 2 = 30 statements that a speaker can draw.
    kinds = ["{0}", "~{0}", *("{0}" + symbol + "{1}" for symbol in "&|>=")]

    def claims(own_knave: str) -> set[str]:
        said = [person for person in "ABab" if person != own_knave]
        return {
            kind.format(left, right)
            for kind in kinds
            for left in said
            for right in said
            if left != right or "{1}" not in kind
        }

    solvable = 0
    for first in claims("a"):
        for second in claims("b"):
            try:
                puzzle_from_statements(compact.parse_prompt(f"A:{first};B:{second};?"))
            except DataError:
                continue
            solvable += 1
    assert solvable == 399


def test_training_repeats_small_puzzles_and_evaluation_refuses_to() -> None:
    train = generate_puzzles(people={2: 1, 4: 1}, count=2000, split="train", seed=0)
    repeats = Counter(puzzle.statements for puzzle in train if puzzle.num_people == 2)
    assert sum(repeats.values()) == 1000
    assert len(repeats) == 288
    assert set(repeats.values()) == {3, 4}  # even repetition: 1000 = 288 * 3 + 136
    with pytest.raises(DataError, match="only 111 distinct puzzles of 2 people"):
        generate_puzzles(people={2: 1, 4: 1}, count=2000, split="evaluation", seed=0)


@pytest.mark.parametrize(("people", "count"), [({1: 1.0}, 5), ({9: 1.0}, 5), ({3: 0.0}, 5), ({}, 5), ({3: 1.0}, 0)])
def test_shares_out_of_range_are_refused(people: dict[int, float], count: int) -> None:
    with pytest.raises(DataError, match="positive"):
        generate_puzzles(people=people, count=count, split="train", seed=0)


def test_distribution_equals_that_of_the_set(real_rows: list[dict[str, Any]]) -> None:
    def features(puzzles: list[Any]) -> dict[str, float]:
        statements = [(speaker, statement) for puzzle in puzzles for speaker, statement in enumerate(puzzle.statements)]
        compound = [(speaker, parts) for speaker, (kind, *parts) in statements if len(parts) == 2]
        counts = {
            kind: sum(statement[0] == kind for _, statement in statements) for kind in ("not", "and", "or", "->", "<=>")
        }
        shares = {kind: count / len(statements) for kind, count in counts.items()}
        shares["mentions the speaker"] = sum(
            any(part[1] == speaker for part in parts) for speaker, parts in compound
        ) / len(compound)
        shares["about one person"] = sum(parts[0][1] == parts[1][1] for _, parts in compound) / len(compound)
        shares["knights"] = sum(sum(puzzle.solution) for puzzle in puzzles) / len(statements)
        return shares

    real = features([puzzle_from_statements(row["statements"]) for row in real_rows])
    ours = features(generate_puzzles(people={3: 1, 4: 1, 5: 1, 6: 1}, count=4000, split="train", seed=0))
    # Three standard errors of a share near 0.2 over the set's 1,800 statements are 0.03.
    assert ours == pytest.approx(real, abs=0.035)
    for row in real_rows:  # No speaker of the set calls himself a knave, and no statement repeats a literal.
        for speaker, (_, *parts) in enumerate(puzzle_from_statements(row["statements"]).statements):
            assert ("lying", speaker) not in parts
            assert len(parts) != 2 or parts[0] != parts[1]
    for puzzle in generate_puzzles(people=ALL_SIZES, count=500, split="train", seed=1):
        for speaker, (_, *parts) in enumerate(puzzle.statements):
            assert ("lying", speaker) not in parts
            assert len(parts) != 2 or parts[0] != parts[1]
