"""Training order of a mixture: shares by weight, spread evenly, every prompt of a source equally often."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.step_pipeline import PromptScheduler, TrainingSet
from rlad.data.order import Mixture, MixtureOrder, PromptOrder, training_order
from rlad.errors import DataError


def mixture(sizes: tuple[int, ...], weights: tuple[float, ...] | None = None) -> Mixture:
    """Return a mixture whose records alternate irregularly between the sources."""
    parts = [part for part, size in enumerate(sizes) for _ in range(size)]
    return Mixture(names=tuple("abcde"[: len(sizes)]), weights=weights, parts=tuple(parts[::2] + parts[1::2]))


def turns(mix: Mixture, count: int, seed: int = 3) -> list[tuple[int, int, int]]:
    order = MixtureOrder(mix, seed)
    return [tuple(order.turn(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("sizes", "weights", "entries"),
    [
        ((10, 30), None, (10, 30)),
        ((10, 30), (1, 1), (20, 20)),
        ((10, 30), (3, 1), (30, 10)),
        ((10, 30), (0.6, 0.2), (30, 10)),
        ((4, 3, 3), (1, 1, 1), (4, 3, 3)),  # shares of 3.33: the first gets the entry left over
        ((5, 5), (0.26, 0.74), (3, 7)),  # shares of 2.6 and 7.4
    ],
)
def test_weights_divide_an_epoch(
    sizes: tuple[int, ...], weights: tuple[float, ...] | None, entries: tuple[int, ...]
) -> None:
    mix = mixture(sizes, weights)
    assert mix.entries == entries
    for epoch in range(3):
        records = [record for of, _, record in turns(mix, 4 * sum(sizes)) if of == epoch]
        counts = Counter(mix.parts[record] for record in records)
        assert tuple(counts[part] for part in range(len(sizes))) == entries


def test_without_weights_each_prompt_occurs_once_an_epoch() -> None:
    found = turns(mixture((3, 8, 1)), 36)
    for epoch in range(3):
        assert sorted(record for of, _, record in found if of == epoch) == list(range(12))
    assert [(epoch, position) for epoch, position, _ in found] == [divmod(number, 12) for number in range(36)]


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(-(2**63), 2**63),
    data=st.data(),
)
def test_prompts_of_a_source_occur_equally_often_and_windows_hold_the_shares(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.5, 2), min_size=len(sizes), max_size=len(sizes)))
    mix = mixture(tuple(sizes), tuple(weights))
    if min(sum(sizes) * weight / sum(weights) for weight in weights) < 1:
        return
    length = len(mix.parts)
    found = turns(mix, 3 * length, seed)
    uses = Counter(record for _, _, record in found)
    for part in range(len(sizes)):
        each = [uses[record] for record in range(length) if mix.parts[record] == part]
        assert max(each) - min(each) <= 1
    start = data.draw(st.integers(0, 2 * length))
    window = found[start : start + data.draw(st.integers(1, length))]
    in_window = Counter(mix.parts[record] for _, _, record in window)
    for part, entries in enumerate(mix.entries):
        # Two epochs can meet in the window, each with rounding of its own.
        assert abs(in_window[part] - len(window) * entries / length) <= 2 * len(sizes)


def test_order_is_a_function_of_seed_and_number_only() -> None:
    mix = mixture((5, 9), (1, 1))
    forward = turns(mix, 60, seed=7)
    order = MixtureOrder(mix, 7)
    assert [tuple(order.turn(number)) for number in reversed(range(60))][::-1] == forward
    assert turns(mix, 60, seed=8) != forward
    epochs = [[mix.parts[record] for of, _, record in forward if of == epoch] for epoch in range(4)]
    records = [[record for of, _, record in forward if of == epoch] for epoch in range(4)]
    assert len({tuple(epoch) for epoch in records}) == 4
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    program = (
        "from rlad.data.order import *\n"
        f"order = MixtureOrder(Mixture(names=('a', 'b'), weights=(1, 1), parts={mix.parts}), 7)\n"
        "print([tuple(order.turn(number)) for number in range(60)])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == str(forward)


def test_resumed_scheduler_continues_with_the_entries_that_are_left() -> None:
    mix = mixture((5, 9), (2, 1))
    training_set = TrainingSet(fingerprint="f", prompt_ids=[str(n) for n in range(14)], group_size=1, mixture=mix)
    whole = PromptScheduler(training_set, seed=5)
    taken = [whole.take() for _ in range(40)]
    used = {uid for uid, _ in taken[:17]} | {taken[19][0]}  # groups finish out of order
    resumed = PromptScheduler(training_set, seed=5, used=used)
    assert [resumed.take() for _ in range(22)] == [*taken[17:19], *taken[20:]]


def test_single_source_keeps_its_order() -> None:
    one = training_order(20, 4)
    assert isinstance(one, PromptOrder)
    # Written down once; a run that was started earlier must find the same order.
    assert [one.turn(number).record for number in range(20)] == [
        0, 13, 8, 10, 18, 5, 7, 9, 1, 16, 2, 15, 11, 17, 19, 6, 4, 3, 12, 14,
    ]  # fmt: skip


def test_source_without_entries_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"part 'b' of the mixture has a weight for less than one of the 10 entries"):
        MixtureOrder(mixture((5, 5), (1, 0.001)), 0)
    with pytest.raises(DataError, match="part 'b' of the mixture has no prompts to train on"):
        MixtureOrder(Mixture(names=("a", "b"), weights=None, parts=(0, 0)), 0)
    with pytest.raises(DataError, match="at least one prompt to train on, got 0"):
        MixtureOrder(Mixture(names=("a",), weights=None, parts=()), 0)
