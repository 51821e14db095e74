"""Micro-batch plans: which sequences share a row, and on which rank."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.errors import ContractError
from rlad.microbatches import plan_microbatches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


thorough = settings(max_examples=300, derandomize=True, deadline=None)


def test_public_signature_is_pinned() -> None:
    assert list(inspect.signature(plan_microbatches).parameters) == ["lengths", "token_budget", "ranks"]


@thorough
@given(LENGTHS, st.integers(1, 80), st.integers(1, 8))
def test_every_plan_is_sound(lengths: list[int], token_budget: int, ranks: int) -> None:
    plan = plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    rows = [row for batches in plan for row in batches]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    for row in rows:
        assert len(row) <= 1 or sum(lengths[index] for index in row) <= token_budget
    # No two rows of best fit could be merged, so at most one of them is at least half empty.
    oversize = [length for length in lengths if length > token_budget]
    most = len(oversize) + 2 * (sum(lengths) - sum(oversize)) / token_budget + 1
    assert len(rows) <= math.ceil(most / ranks) * ranks
    totals = [sum(lengths[index] for row in batches for index in row) for batches in plan]
    assert max(totals) - min(totals) <= max([token_budget, *lengths])
    assert plan == plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)


@thorough
@given(LENGTHS, st.integers(1, 80), st.integers(1, 8))
def test_micro_batches_of_one_round_have_the_most_similar_sizes(
    lengths: list[int], token_budget: int, ranks: int
) -> None:
    """Ranks wait for the largest micro-batch of a round, so no row is larger than a row of an earlier round."""
    plan = plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)
    rounds = [[sum(lengths[index] for index in row) for row in rows] for rows in zip(*plan, strict=True)]
    for earlier, later in itertools.pairwise(rounds):
        assert min(earlier) >= max(later)


@pytest.mark.parametrize(
    ("lengths", "token_budget", "ranks", "expected"),
    [
        ([], 10, 2, [[], []]),
        ([5], 10, 2, [[[0]], [[]]]),
        ([25, 3], 10, 1, [[[0], [1]]]),  # longer than the budget: gets its own row
        ([6, 6, 4, 4], 10, 1, [[[0, 2], [1, 3]]]),
        ([6, 6, 4, 4], 10, 2, [[[0, 2]], [[1, 3]]]),
        ([5, 5, 5, 5], 20, 2, [[[0, 2]], [[1, 3]]]),  # one row would suffice, but there are two ranks
        ([10, 8, 6, 4], 10, 2, [[[0], [3]], [[1], [2]]]),  # the rank with fewer tokens gets the larger row next
        ([7, 5, 3, 3, 2], 10, 1, [[[0, 3], [1, 2, 4]]]),
        ([6, 4, 4, 3, 3], 10, 1, [[[0, 1], [2, 3, 4]]]),  # spread evenly (6+3, 4+4), the last would not fit
    ],
)
def test_plans_by_hand(lengths: list[int], token_budget: int, ranks: int, expected: list[list[list[int]]]) -> None:
    assert plan_microbatches(lengths, token_budget=token_budget, ranks=ranks) == expected


def test_tokens_are_spread_evenly_over_ranks_and_rows() -> None:
    """256 responses with widely spread lengths: rows and ranks are within 2% of each other."""
    lengths = np.random.default_rng(0).integers(50, 2000, size=256).tolist()
    plan = plan_microbatches(lengths, token_budget=16384, ranks=4)
    loads = np.array([[sum(lengths[index] for index in row) for row in batches] for batches in plan])
    assert loads.shape == (4, math.ceil(sum(lengths) / 16384 / 4))
    assert loads.max() / loads.min() < 1.02
    assert loads.sum(axis=1).max() / loads.sum(axis=1).min() < 1.02


@pytest.mark.parametrize("wrong", [{"token_budget": 0}, {"ranks": 0}, {"lengths": [3, 0]}])
def test_plan_arguments_below_one_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="at least 1"):
        plan_microbatches(**({"lengths": [1, 2], "token_budget": 8, "ranks": 1} | wrong))
