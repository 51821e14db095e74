"""What tests with real ranks share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .learner_ranks import Ranks


@pytest.fixture(scope="module")
def ranks_by_number() -> Iterator[dict[int, Ranks]]:
    """Processes of one rank and of two, that take trainers' work."""
    from .learner_ranks import Ranks  # with it comes DeepSpeed, which most tests of this folder need not wait for

    ranks = {size: Ranks(size) for size in (1, 2)}
    yield ranks
    for each in ranks.values():
        each.close()


@pytest.fixture
def two_ranks(ranks_by_number: dict[int, Ranks]) -> Ranks:
    return ranks_by_number[2]
