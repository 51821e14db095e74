"""Parsing of vLLM's flat lists of log-probabilities. The engine itself is tested end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.engines.vllm_engine.scorer import response_scores

# A prompt of 3 tokens (the first has no entry) and a response of 2. Each token has itself and the 2 most likely ones.
TOKEN_IDS = [11, 7, 8, 12, 12, 9, 13, 4, 5, 14, 14, 6]
PROBABILITIES = [0.1, 0.5, 0.2, 0.6, 0.6, 0.3, 0.05, 0.75, 0.125, 0.9, 0.9, 0.1]
LOGPROBS = [math.log(p) for p in PROBABILITIES]


def test_entries_of_the_response_are_split_into_sampled_tokens_and_support() -> None:
    scores = response_scores(TOKEN_IDS, LOGPROBS, 2, support=2, vocabulary=30)
    assert scores.support_ids is not None
    assert scores.support_ids.tolist() == [[4, 5], [14, 6]]
    np.testing.assert_allclose(np.exp(scores.logprobs), [0.05, 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.exp(scores.support_logprobs), [[0.75, 0.125], [0.9, 0.1]], rtol=1e-6)


def test_tail_is_one_minus_the_support_and_at_least_the_rounding_error() -> None:
    scores = response_scores(TOKEN_IDS, LOGPROBS, 2, support=2, vocabulary=30)
    assert scores.tail_logprobs is not None
    assert scores.tail_logprobs[0] == pytest.approx(math.log(0.125), abs=1e-5)
    assert scores.tail_logprobs[1] == pytest.approx(math.log(2**-23), abs=1), "0.9 + 0.1 leaves only the rounding error"
    above = response_scores([1, 1], [0.0, 1e-6], 1, support=1, vocabulary=30)
    assert above.tail_logprobs is not None
    # Above 1 by rounding. A tail of -inf would mean a support of the full vocabulary.
    assert above.tail_logprobs[0] == pytest.approx(math.log(2**-23))


def test_support_of_the_full_vocabulary_has_an_empty_tail() -> None:
    scores = response_scores([0, 0, 1], [math.log(0.5), math.log(0.5), math.log(0.25)], 1, support=2, vocabulary=2)
    assert scores.tail_logprobs is not None
    assert scores.tail_logprobs.tolist() == [-math.inf]


def test_without_support_each_token_has_one_entry() -> None:
    scores = response_scores([3, 4, 5], [-1.0, -2.0, -3.0], 2, support=0, vocabulary=30)
    assert scores.logprobs.tolist() == [-2.0, -3.0]
    assert scores.support_ids is None


def test_nan_is_kept() -> None:
    scores = response_scores([3, 3], [math.nan, math.nan], 1, support=1, vocabulary=30)
    assert scores.tail_logprobs is not None
    assert np.isnan(scores.logprobs[0])
    assert np.isnan(scores.tail_logprobs[0])
