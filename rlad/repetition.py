"""Detection of responses that end in a loop, as those of a collapsing policy do."""

from __future__ import annotations

from rlad.contracts import Array

WINDOW = 64
"""Number of last tokens that are examined. Shorter responses are no loops."""

MIN_REPEATS = 4
"""Least number of repetitions in the window."""


def ends_in_loop(response_ids: Array) -> bool:
    """Return whether the last `WINDOW` tokens are one sequence of tokens, repeated at least `MIN_REPEATS` times.

    An end-of-sequence token behind the loop is ignored.

    Args:
        response_ids: Tokens of the response, int [T].
    """
    for end in (len(response_ids), len(response_ids) - 1):
        tail = response_ids[max(0, end - WINDOW) : max(0, end)]
        if len(tail) < WINDOW:
            return False
        if any((tail[period:] == tail[:-period]).all() for period in range(1, WINDOW // MIN_REPEATS + 1)):
            return True
    return False
