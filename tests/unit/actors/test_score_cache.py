from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.score_cache import CachedScorer, ScoreCache, response_keys

PROMPT = np.array([3, 1, 4], np.int32)
RESPONSES = np.array([1, 5, 9, 2, 6, 1, 5], np.int32)
OFFSETS = np.array([0, 2, 2, 5, 7], np.int64)  # [1, 5], [], [9, 2, 6], [1, 5]


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_equal_responses_share_a_key_and_different_ones_do_not() -> None:
    first, empty, middle, last = response_keys("t", 1.0, PROMPT, RESPONSES, OFFSETS)
    assert first == last
    assert len({first, empty, middle}) == 3


@pytest.mark.parametrize(
    ("teacher", "temperature", "prompt", "response"),
    [
        ("u", 1.0, [3, 1, 4], [1, 5]),
        ("t", 0.5, [3, 1, 4], [1, 5]),
        ("t", 1.0, [3, 1], [4, 1, 5]),  # the same tokens, cut elsewhere
        ("t", 1.0, [3, 1, 4, 1], [5]),
        ("t", 1.0, [3, 1, 5], [1, 5]),
        ("t", 1.0, [3, 1, 4], [1, 6]),
    ],
)
def test_key_depends_on_everything_the_scores_depend_on(teacher: str, temperature: float, prompt: list[int], response: list[int]) -> None:
    [reference] = response_keys("t", 1.0, PROMPT, np.array([1, 5], np.int32), np.array([0, 2], np.int64))
    [other] = response_keys(teacher, temperature, np.array(prompt, np.int32), np.array(response, np.int32), np.array([0, len(response)], np.int64))
    assert other != reference


def test_remembers_what_was_put_and_counts_lookups() -> None:
    cache = ScoreCache(max_tokens=10)
    assert cache.get(b"a") is None
    cache.put(b"a", scores(-1.0, -2.0))
    found = cache.get(b"a")
    assert found is not None
    assert found.tolist() == [-1.0, -2.0]
    assert (cache.hits, cache.misses, cache.num_tokens) == (1, 1, 2)


def test_forgets_the_least_recently_used_first() -> None:
    cache = ScoreCache(max_tokens=4)
    cache.put(b"a", scores(-1, -1))
    cache.put(b"b", scores(-2, -2))
    cache.get(b"a")
    cache.put(b"c", scores(-3))  # needs room: b was used longest ago
    assert [key for key in (b"a", b"b", b"c") if cache.get(key) is not None] == [b"a", b"c"]
    assert cache.num_tokens == 3


def test_response_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = ScoreCache(max_tokens=2)
    cache.put(b"a", scores(-1))
    cache.put(b"b", scores(-1, -2, -3))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_zero_tokens_turns_it_off() -> None:
    cache = ScoreCache(max_tokens=0)
    cache.put(b"a", scores(-1))
    assert cache.get(b"a") is None
    assert cache.num_tokens == 0


def test_non_finite_scores_are_not_remembered() -> None:
    cache = ScoreCache(max_tokens=10)
    for key, value in ((b"a", np.nan), (b"b", -np.inf)):
        cache.put(key, scores(-1, value))
        assert cache.get(key) is None


def test_holds_no_reference_to_the_group_it_was_cut_from() -> None:
    cache = ScoreCache(max_tokens=10)
    group = scores(-1, -2, -3, -4)
    cache.put(b"a", group[1:3])
    group[:] = 0.0
    found = cache.get(b"a")
    assert found is not None
    assert found.tolist() == [-2.0, -3.0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=60), st.integers(0, 15))
def test_bound_holds_whatever_is_put(puts: list[tuple[int, int]], max_tokens: int) -> None:
    cache = ScoreCache(max_tokens=max_tokens)
    lengths: dict[bytes, int] = {}
    for name, length in puts:
        key = bytes([name])
        held = cache.get(key)
        assert held is None or len(held) == lengths[key]
        if held is None:
            lengths[key] = length
        cache.put(key, np.zeros(lengths[key], np.float32))
        assert cache.num_tokens <= max_tokens
        remembered = [cache.get(each) for each in lengths]
        assert cache.num_tokens == sum(len(each) for each in remembered if each is not None)


class CountingScorer:
    """Scores a token by its id and the prompt's sum, so the right place is told from any other; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def score(self, prompt_ids: np.ndarray, response_ids: np.ndarray, response_offsets: np.ndarray, temperature: float) -> np.ndarray:
        self.asked.append(response_ids.tolist())
        return (-(response_ids + prompt_ids.sum()) / temperature).astype(np.float32)

    async def check_health(self) -> None: ...

    def close(self) -> None: ...


async def test_engine_is_asked_once_for_equal_responses_and_scores_land_in_their_places() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_tokens=100))
    first = await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0)
    assert first.tolist() == [-9, -13, -17, -10, -14, -9, -13]
    assert engine.asked == [[1, 5, 9, 2, 6]]
    again = await scorer.score(PROMPT, np.array([7, 1, 5], np.int32), np.array([0, 1, 3], np.int64), 1.0)
    assert again.tolist() == [-15, -9, -13]
    assert engine.asked[1:] == [[7]]
    await scorer.score(PROMPT, RESPONSES, OFFSETS, 0.5)
    assert engine.asked[2:] == [[1, 5, 9, 2, 6]]


async def test_group_of_empty_responses_needs_no_engine() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_tokens=100))
    scores = await scorer.score(PROMPT, np.array([], np.int32), np.array([0, 0, 0], np.int64), 1.0)
    assert scores.dtype == np.float32
    assert len(scores) == 0
    assert engine.asked == []


async def test_without_memory_every_group_is_scored_again() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_tokens=0))
    for _ in range(2):
        await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0)
    assert engine.asked == [[1, 5, 9, 2, 6]] * 2
