"""Fixtures for tests with real learner ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .learner_ranks import Ranks


@pytest.fixture(scope="module")
def ranks_by_number() -> Iterator[dict[int, Ranks]]:
    """Process groups of one, two and four ranks, by number of ranks. Processes start at the first use."""
    from .learner_ranks import Ranks  # imports DeepSpeed, which most tests of this folder do not need

    ranks = {size: Ranks(size) for size in (1, 2, 4)}
    yield ranks
    for group in ranks.values():
        group.close()


@pytest.fixture
def two_ranks(ranks_by_number: dict[int, Ranks]) -> Ranks:
    return ranks_by_number[2]
