"""Training order: seeded permutations per epoch, equal in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlad.data.order import PromptOrder
from rlad.errors import DataError


@given(num_prompts=st.integers(1, 40), size=st.integers(1, 60), seed=st.integers(-(2**63), 2**63))
def test_every_epoch_contains_each_prompt_once_for_any_batch_size(num_prompts: int, size: int, seed: int) -> None:
    order = PromptOrder(num_prompts, seed)
    turns = [order.turn(number) for number in range(3 * num_prompts)]
    assert [(epoch, position) for epoch, position, _ in turns] == [
        (epoch, position) for epoch in range(3) for position in range(num_prompts)
    ]
    for epoch in range(3):
        assert sorted(record for of, _, record in turns if of == epoch) == list(range(num_prompts))


def test_batch_spans_epochs() -> None:
    assert [(epoch, position) for epoch, position, _ in [PromptOrder(3, seed=0).turn(number) for number in (2, 3)]] == [
        (0, 2),
        (1, 0),
    ]


def test_order_does_not_depend_on_batch_size_or_earlier_calls() -> None:
    one_by_one = [PromptOrder(10, seed=5).turn(number) for number in reversed(range(40))][::-1]
    assert [PromptOrder(10, seed=5).turn(number) for number in range(40)] == one_by_one


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        return [
            tuple(PromptOrder(50, seed).turn(50 * epoch + place).record for place in range(50)) for epoch in range(3)
        ]

    assert len({*orders(0), *orders(1), *orders(-1), tuple(range(50))}) == 10


def test_order_is_the_same_in_another_process() -> None:
    program = (
        "from rlad.data.order import PromptOrder\n"
        "print([PromptOrder(100, seed=7).turn(number).record for number in range(192, 256)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    assert printed == str([PromptOrder(100, seed=7).turn(number).record for number in range(192, 256)])


def test_empty_prompt_source_is_refused() -> None:
    with pytest.raises(DataError, match="at least one prompt to train on, got 0"):
        PromptOrder(0, seed=0)
