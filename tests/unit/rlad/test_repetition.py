"""Responses that end in a loop."""

from __future__ import annotations

import numpy as np
import pytest

from actors.messages import GroupSummary
from rlad.repetition import ends_in_loop
from rlad.testing import make_group


@pytest.mark.parametrize("period", [1, 2, 7, 16])
def test_last_64_tokens_with_a_period_of_at_most_16_are_a_loop(period: int) -> None:
    start, loop = np.arange(100, 130), np.resize(np.arange(period), 64)
    assert ends_in_loop(np.concatenate([start, loop]))
    assert ends_in_loop(np.concatenate([start, loop, [99]]))  # the end of sequence follows
    assert not ends_in_loop(np.concatenate([start, loop, [99, 98]]))
    assert not ends_in_loop(np.concatenate([start[:1], loop[:63]]))


def test_longer_period_and_short_or_empty_responses_are_no_loop() -> None:
    assert not ends_in_loop(np.resize(np.arange(17), 200))
    assert not ends_in_loop(np.zeros(63, np.int32))
    assert not ends_in_loop(np.zeros(0, np.int32))
    assert ends_in_loop(np.zeros(64, np.int32))


def test_summary_of_a_group_counts_its_loops() -> None:
    group = make_group([[5] * 80, [*range(5, 85)], [], [5, 6] * 40])
    assert GroupSummary.of(group).num_repetitive == 2
