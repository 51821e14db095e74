"""Micro-batch planning: assigns the sequences of an optimizer step to ranks and micro-batches.

Shape letters: M sequences.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence

from rlad.errors import ContractError


def plan_microbatches(lengths: Sequence[int], *, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Assign sequences to ranks and micro-batches.

    Every rank gets the same number of micro-batches, because ZeRO's collectives run in lockstep. A rank with an empty
    micro-batch runs `rlad.packing.dummy_batch`. The number of micro-batches is that of best-fit decreasing, rounded up
    to a multiple of `ranks`. Within that number, tokens are spread evenly, longest sequences first, which also spreads
    the quadratic cost of attention.

    Micro-batches that run at the same time have similar sizes. The largest run first, so a row that is too large for
    the memory fails at once. The totals of any two ranks differ by at most `token_budget` or the longest sequence,
    whichever is larger.

    The plan is deterministic and takes O(M log M) comparisons.

    Args:
        lengths: Tokens of each sequence, at least 1, M entries.
        token_budget: Maximum tokens of a micro-batch. A longer sequence gets a micro-batch of its own.
        ranks: Number of data-parallel ranks.

    Returns:
        The micro-batches of each rank. A micro-batch is the ascending list of its sequences' indices. Without
        sequences, every rank has an empty list.

    Raises:
        ContractError: An argument is below 1.
    """
    if token_budget < 1 or ranks < 1 or any(length < 1 for length in lengths):
        raise ContractError(
            "plan_microbatches: token_budget, ranks and every length must be at least 1; "
            f"got token_budget {token_budget}, ranks {ranks}, lengths {list(lengths)}"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    packed = _best_fit(order, lengths, token_budget)
    num_rows = -(-len(packed) // ranks) * ranks
    rows = _spread(order, lengths, token_budget, num_rows)
    if rows is None:
        rows = packed + [[] for _ in range(num_rows - len(packed))]
    return _deal(rows, lengths, ranks)


def _best_fit(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Put each sequence into the fullest row that still holds it."""
    rows: list[list[int]] = []
    free_rows: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in order:
        at = bisect.bisect_left(free_rows, (lengths[index], 0))
        if at < len(free_rows):
            free_tokens, row = free_rows.pop(at)
        else:
            free_tokens, row = token_budget, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(free_rows, (free_tokens - lengths[index], row))
    return rows


def _spread(order: Sequence[int], lengths: Sequence[int], token_budget: int, num_rows: int) -> list[list[int]] | None:
    """Put each sequence into the emptiest row. Return None if a sequence does not fit into the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    load = [(0, row) for row in range(num_rows)]
    for index in order:
        tokens, row = load[0]
        if tokens > 0 and tokens + lengths[index] > token_budget:
            return None
        heapq.heapreplace(load, (tokens + lengths[index], row))
        rows[row].append(index)
    return rows


def _deal(rows: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """Deal rows to ranks in rounds of similar size. In each round, the rank with the fewest tokens gets the largest."""
    loads = {row: sum(lengths[index] for index in members) for row, members in enumerate(rows)}
    by_size = sorted(loads, key=lambda row: (-loads[row], row))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for start in range(0, len(by_size), ranks):
        emptiest_first = sorted(range(ranks), key=lambda rank: (totals[rank], rank))
        for rank, row in zip(emptiest_first, by_size[start : start + ranks], strict=True):
            plan[rank].append(sorted(rows[row]))
            totals[rank] += loads[row]
    return plan
