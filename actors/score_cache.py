"""What a teacher remembers: log-probabilities of whole responses, by a hash of everything they depend on."""

from __future__ import annotations

import itertools
import struct
from collections import OrderedDict

import numpy as np
import xxhash

from actors.engines.scorer import Scorer
from rlad.contracts import Array


def response_keys(teacher: str, temperature: float, prompt_ids: Array, response_ids: Array, response_offsets: Array) -> list[bytes]:
    """One 128-bit key a response, over teacher, temperature, prompt tokens and response tokens.

    Args:
        teacher: fingerprint of the teacher's weights and tokenizer.
        temperature: at which the scores are taken.
        prompt_ids: int32 [P].
        response_ids: int32 [N], the responses end to end.
        response_offsets: int64 [G + 1].
    """
    name = teacher.encode()
    # Lengths are hashed too, so no two different (teacher, prompt, response) can be the same bytes.
    head = xxhash.xxh3_128(struct.pack("<dqq", temperature, len(name), len(prompt_ids)))
    head.update(name)
    head.update(prompt_ids.astype(np.int32).tobytes())
    keys = []
    for start, end in itertools.pairwise(response_offsets):
        whole = head.copy()
        whole.update(response_ids[start:end].astype(np.int32).tobytes())
        keys.append(whole.digest())
    return keys


class ScoreCache:
    """Least recently used responses are forgotten first; the bound is on tokens, which is what memory goes by.

    Args:
        max_tokens: tokens remembered at most; 0 remembers nothing.

    Attributes:
        hits, misses: responses looked up and found, or not.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._scores: OrderedDict[bytes, Array] = OrderedDict()
        self._num_tokens = 0
        self.hits = 0
        self.misses = 0

    @property
    def num_tokens(self) -> int:
        """Tokens remembered now."""
        return self._num_tokens

    def get(self, key: bytes) -> Array | None:
        """float32 [tokens of the response], or None. The array is the cache's own: do not write to it."""
        logprobs = self._scores.get(key)
        if logprobs is None:
            self.misses += 1
            return None
        self.hits += 1
        self._scores.move_to_end(key)
        return logprobs

    def put(self, key: bytes, logprobs: Array) -> None:
        """Remember a response's scores. Not kept: scores that are not all finite (their cause may pass), and an empty or too large response."""
        if key in self._scores or not 0 < len(logprobs) <= self._max_tokens or not np.isfinite(logprobs).all():
            return
        while self._num_tokens + len(logprobs) > self._max_tokens:
            _, forgotten = self._scores.popitem(last=False)
            self._num_tokens -= len(forgotten)
        # A copy: a slice would keep the scores of its whole group alive.
        self._scores[key] = np.array(logprobs, dtype=np.float32)
        self._num_tokens += len(logprobs)


class CachedScorer:
    """A `Scorer` that asks another one only for responses it does not remember, and for equal responses of a group once."""

    def __init__(self, scorer: Scorer, *, teacher: str, cache: ScoreCache) -> None:
        self._scorer = scorer
        self._teacher = teacher
        self._cache = cache

    async def score(self, prompt_ids: Array, response_ids: Array, response_offsets: Array, temperature: float) -> Array:
        keys = response_keys(self._teacher, temperature, prompt_ids, response_ids, response_offsets)
        responses = [slice(start, end) for start, end in itertools.pairwise(response_offsets.tolist())]
        known: dict[bytes, Array] = {}
        unknown: dict[bytes, slice] = {}
        for key, response in zip(keys, responses, strict=True):
            if key in known or key in unknown or response.start == response.stop:
                continue
            remembered = self._cache.get(key)
            if remembered is None:
                unknown[key] = response
            else:
                known[key] = remembered
        if unknown:
            parts = [response_ids[response] for response in unknown.values()]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            scored = await self._scorer.score(prompt_ids, np.concatenate(parts), offsets, temperature)
            for key, part in zip(unknown, np.split(scored, offsets[1:-1]), strict=True):
                self._cache.put(key, part)
                known[key] = part
        logprobs = np.empty(len(response_ids), np.float32)
        for key, response in zip(keys, responses, strict=True):
            if response.start < response.stop:
                logprobs[response] = known[key]
        return logprobs

    async def check_health(self) -> None:
        await self._scorer.check_health()

    def close(self) -> None:
        self._scorer.close()
