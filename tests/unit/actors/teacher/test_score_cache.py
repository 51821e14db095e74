"""Score cache and cached scorer, with a fake engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.scorer import TokenScores, support_size
from actors.teacher.score_cache import CachedScorer, ScoreCache, response_keys
from rlad.contracts import TeacherSupport
from rlad.errors import EngineError

PROMPT = np.array([3, 1, 4], np.int32)
RESPONSES = np.array([1, 5, 9, 2, 6, 1, 5], np.int32)
OFFSETS = np.array([0, 2, 2, 5, 7], np.int64)  # [1, 5], [], [9, 2, 6], [1, 5]


def scores(*values: float) -> TokenScores:
    return TokenScores(logprobs=np.array(values, np.float32))


def supported(logprobs: list[float], support_logprobs: list[list[float]], tail_logprobs: list[float]) -> TokenScores:
    support = np.array(support_logprobs, np.float32)
    ids = np.tile(np.arange(support.shape[1], dtype=np.int32), (len(support), 1))
    return TokenScores(
        logprobs=np.array(logprobs, np.float32),
        support_ids=ids,
        support_logprobs=support,
        tail_logprobs=np.array(tail_logprobs, np.float32),
    )


def test_equal_responses_share_a_key_and_different_ones_do_not() -> None:
    first, empty, middle, last = response_keys("t", 1.0, None, PROMPT, RESPONSES, OFFSETS)
    assert first == last
    assert len({first, empty, middle}) == 3


@pytest.mark.parametrize(
    ("teacher", "temperature", "support", "prompt", "response"),
    [
        ("u", 1.0, 2, [3, 1, 4], [1, 5]),
        ("t", 0.5, 2, [3, 1, 4], [1, 5]),
        ("t", 1.0, None, [3, 1, 4], [1, 5]),
        ("t", 1.0, 3, [3, 1, 4], [1, 5]),
        ("t", 1.0, "full", [3, 1, 4], [1, 5]),
        ("t", 1.0, 2, [3, 1], [4, 1, 5]),  # the same tokens, split differently
        ("t", 1.0, 2, [3, 1, 4, 1], [5]),
        ("t", 1.0, 2, [3, 1, 5], [1, 5]),
        ("t", 1.0, 2, [3, 1, 4], [1, 6]),
    ],
)
def test_key_depends_on_everything_the_scores_depend_on(
    teacher: str, temperature: float, support: TeacherSupport, prompt: list[int], response: list[int]
) -> None:
    def key(teacher: str, temperature: float, support: TeacherSupport, prompt: list[int], response: list[int]) -> bytes:
        ids, offsets = np.array(response, np.int32), np.array([0, len(response)], np.int64)
        [found] = response_keys(teacher, temperature, support, np.array(prompt, np.int32), ids, offsets)
        return found

    assert key(teacher, temperature, support, prompt, response) != key("t", 1.0, 2, [3, 1, 4], [1, 5])


def test_stored_scores_are_found_and_lookups_counted() -> None:
    cache = ScoreCache(max_values=10)
    assert cache.get(b"a") is None
    cache.put(b"a", scores(-1.0, -2.0))
    found = cache.get(b"a")
    assert found is not None
    assert found.logprobs.tolist() == [-1.0, -2.0]
    assert (cache.hits, cache.misses, cache.num_values) == (1, 1, 2)


def test_least_recently_used_response_is_evicted_first() -> None:
    cache = ScoreCache(max_values=4)
    cache.put(b"a", scores(-1, -1))
    cache.put(b"b", scores(-2, -2))
    cache.get(b"a")
    cache.put(b"c", scores(-3))  # evicts b, the least recently used
    assert [key for key in (b"a", b"b", b"c") if cache.get(key) is not None] == [b"a", b"c"]
    assert cache.num_values == 3


def test_response_larger_than_the_cache_evicts_nothing() -> None:
    cache = ScoreCache(max_values=2)
    cache.put(b"a", scores(-1))
    cache.put(b"b", scores(-1, -2, -3))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_size_zero_disables_the_cache() -> None:
    cache = ScoreCache(max_values=0)
    cache.put(b"a", scores(-1))
    assert cache.get(b"a") is None
    assert cache.num_values == 0


def test_support_counts_with_all_its_values() -> None:
    cache = ScoreCache(max_values=16)  # two tokens of 1 + 3 + 3 + 1 values
    token = supported([-1], [[-1, -2, -3]], [-np.inf])
    for key in (b"a", b"b", b"c"):
        cache.put(key, token)
    assert [key for key in (b"a", b"b", b"c") if cache.get(key) is not None] == [b"b", b"c"]
    assert cache.num_values == 16
    cache.put(b"d", scores(-1))  # one value evicts a whole support
    assert cache.num_values == 9
    assert [key for key in (b"b", b"c") if cache.get(key) is not None] == [b"c"]


@pytest.mark.parametrize(
    "incomplete",
    [
        supported([-1], [[np.nan, -2]], [-3]),
        supported([-1], [[-1, -2]], [np.nan]),
        supported([np.nan], [[-1, -2]], [-3]),
    ],
)
def test_incomplete_support_is_not_stored(incomplete: TokenScores) -> None:
    cache = ScoreCache(max_values=100)
    cache.put(b"a", incomplete)
    assert cache.get(b"a") is None


def test_support_size_is_limited_by_the_vocabulary() -> None:
    assert [support_size(support, 32) for support in (None, 1, 32, "full")] == [0, 1, 32, 32]
    for impossible in (0, 33):
        with pytest.raises(EngineError, match=f"from 1 to 32, the teacher's vocabulary size; got {impossible}"):
            support_size(impossible, 32)


def test_non_finite_scores_are_not_stored() -> None:
    cache = ScoreCache(max_values=10)
    for key, value in ((b"a", np.nan), (b"b", -np.inf)):
        cache.put(key, scores(-1, value))
        assert cache.get(key) is None


def test_stored_scores_do_not_reference_their_group() -> None:
    cache = ScoreCache(max_values=10)
    group = scores(-1, -2, -3, -4)
    cache.put(b"a", group[1:3])
    group.logprobs[:] = 0.0
    found = cache.get(b"a")
    assert found is not None
    assert found.logprobs.tolist() == [-2.0, -3.0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=60), st.integers(0, 15))
def test_number_of_values_never_exceeds_the_bound(puts: list[tuple[int, int]], max_values: int) -> None:
    cache = ScoreCache(max_values=max_values)
    lengths: dict[bytes, int] = {}
    for name, length in puts:
        key = bytes([name])
        held = cache.get(key)
        assert held is None or len(held) == lengths[key]
        if held is None:
            lengths[key] = length
        cache.put(key, scores(*[0.0] * lengths[key]))
        assert cache.num_values <= max_values
        stored = [cache.get(each) for each in lengths]
        assert cache.num_values == sum(len(each) for each in stored if each is not None)


class CountingScorer:
    """Scorer whose scores depend on the token id and the sum of the prompt. Records the responses it scored."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def score(
        self,
        prompt_ids: np.ndarray,
        response_ids: np.ndarray,
        response_offsets: np.ndarray,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        if len(response_ids):
            self.asked.append(response_ids.tolist())
        logprobs = -(response_ids + prompt_ids.sum()) / temperature
        if support is None:
            return scores(*logprobs)
        size = support_size(support, 4)
        return supported(logprobs.tolist(), (logprobs[:, None] - np.arange(size)).tolist(), (logprobs - 100).tolist())

    async def check_health(self) -> None: ...

    def close(self) -> None: ...


async def test_equal_responses_are_scored_once_and_scores_keep_their_order() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_values=100))
    first = await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0)
    assert first.logprobs.tolist() == [-9, -13, -17, -10, -14, -9, -13]
    assert engine.asked == [[1, 5, 9, 2, 6]]
    again = await scorer.score(PROMPT, np.array([7, 1, 5], np.int32), np.array([0, 1, 3], np.int64), 1.0)
    assert again.logprobs.tolist() == [-15, -9, -13]
    assert engine.asked[1:] == [[7]]
    await scorer.score(PROMPT, RESPONSES, OFFSETS, 0.5)
    assert engine.asked[2:] == [[1, 5, 9, 2, 6]]


async def test_group_of_empty_responses_needs_no_forward_pass() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_values=100))
    found = await scorer.score(PROMPT, np.array([], np.int32), np.array([0, 0, 0], np.int64), 1.0)
    assert found.logprobs.dtype == np.float32
    assert len(found) == 0
    assert engine.asked == []


async def test_disabled_cache_scores_every_group_again() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_values=0))
    for _ in range(2):
        await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0)
    assert engine.asked == [[1, 5, 9, 2, 6]] * 2


async def test_supports_keep_their_order_and_are_cached_separately() -> None:
    engine = CountingScorer()
    scorer = CachedScorer(engine, teacher="t", cache=ScoreCache(max_values=1000))
    await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0)
    for support, expected in ((2, [0, -1]), ("full", [0, -1, -2, -3])):
        before = len(engine.asked)
        for _ in range(2):
            found = await scorer.score(PROMPT, RESPONSES, OFFSETS, 1.0, support)
            assert found.support_logprobs is not None
            assert found.tail_logprobs is not None
            assert found.support_size == len(expected)
            sampled = np.array([-9, -13, -17, -10, -14, -9, -13])
            assert found.support_logprobs.tolist() == (sampled[:, None] + expected).tolist()
            assert found.tail_logprobs.tolist() == (sampled - 100).tolist()
        assert engine.asked[before:] == [[1, 5, 9, 2, 6]], "the second call is answered from the cache"
