"""What vLLM's flat lists mean, by hand; the engine itself is in the end-to-end tests."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.engines.vllm_engine.scorer import response_scores

# A prompt of 3 tokens (the first has no entry) and a response of 2, each with itself and its 2 likeliest tokens.
TOKEN_IDS = [11, 7, 8, 12, 12, 9, 13, 4, 5, 14, 14, 6]
PROBABILITIES = [0.1, 0.5, 0.2, 0.6, 0.6, 0.3, 0.05, 0.75, 0.125, 0.9, 0.9, 0.1]
LOGPROBS = [math.log(p) for p in PROBABILITIES]


def test_only_the_responses_entries_are_kept_and_the_sampled_tokens_apart() -> None:
    scores = response_scores(TOKEN_IDS, LOGPROBS, 2, support=2, vocabulary=30)
    assert scores.support_ids is not None
    assert scores.support_ids.tolist() == [[4, 5], [14, 6]]
    np.testing.assert_allclose(np.exp(scores.logprobs), [0.05, 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.exp(scores.support_logprobs), [[0.75, 0.125], [0.9, 0.1]], rtol=1e-6)


def test_the_tail_is_what_the_support_leaves_of_one_down_to_rounding() -> None:
    scores = response_scores(TOKEN_IDS, LOGPROBS, 2, support=2, vocabulary=30)
    assert scores.tail_logprobs is not None
    assert scores.tail_logprobs[0] == pytest.approx(math.log(0.125), abs=1e-5)
    assert scores.tail_logprobs[1] == pytest.approx(math.log(2**-23), abs=1), "0.9 and 0.1: only rounding is left"
    above = response_scores([1, 1], [0.0, 1e-6], 1, support=1, vocabulary=30)
    assert above.tail_logprobs is not None
    # Above 1 by rounding. Not -inf: that would say that the support is the whole vocabulary.
    assert above.tail_logprobs[0] == pytest.approx(math.log(2**-23))


def test_a_support_of_the_whole_vocabulary_has_no_tail() -> None:
    scores = response_scores([0, 0, 1], [math.log(0.5), math.log(0.5), math.log(0.25)], 1, support=2, vocabulary=2)
    assert scores.tail_logprobs is not None
    assert scores.tail_logprobs.tolist() == [-math.inf]


def test_without_a_support_there_is_one_entry_a_token() -> None:
    scores = response_scores([3, 4, 5], [-1.0, -2.0, -3.0], 2, support=0, vocabulary=30)
    assert scores.logprobs.tolist() == [-2.0, -3.0]
    assert scores.support_ids is None


def test_nan_stays_nan() -> None:
    scores = response_scores([3, 3], [math.nan, math.nan], 1, support=1, vocabulary=30)
    assert scores.tail_logprobs is not None
    assert np.isnan(scores.logprobs[0])
    assert np.isnan(scores.tail_logprobs[0])
