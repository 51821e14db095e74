"""What a teacher remembers: log-probabilities of whole responses, by a hash of everything they depend on."""

from __future__ import annotations

import itertools
import struct
from collections import OrderedDict

import numpy as np
import xxhash

from actors.engines.scorer import Scorer, TokenScores
from rlad.contracts import Array, TeacherSupport


def response_keys(
    teacher: str,
    temperature: float,
    support: TeacherSupport,
    prompt_ids: Array,
    response_ids: Array,
    response_offsets: Array,
) -> list[bytes]:
    """One 128-bit key a response, over teacher, temperature, support, prompt tokens and response tokens.

    Args:
        teacher: fingerprint of the teacher's weights and tokenizer.
        temperature: at which the scores are taken.
        support: what is scored beside the sampled tokens.
        prompt_ids: int32 [P].
        response_ids: int32 [N], the responses end to end.
        response_offsets: int64 [G + 1].
    """
    name = teacher.encode()
    scored = 0 if support is None else -1 if support == "full" else support
    # Lengths are hashed too, so no two different (teacher, prompt, response) can be the same bytes.
    head = xxhash.xxh3_128(struct.pack("<dqqq", temperature, scored, len(name), len(prompt_ids)))
    head.update(name)
    head.update(prompt_ids.astype(np.int32).tobytes())
    keys = []
    for start, end in itertools.pairwise(response_offsets):
        whole = head.copy()
        whole.update(response_ids[start:end].astype(np.int32).tobytes())
        keys.append(whole.digest())
    return keys


class ScoreCache:
    """Least recently used responses are forgotten first; the bound is on values of 4 bytes, which is what memory goes by.

    Args:
        max_values: values remembered at most; 0 remembers nothing. A token is one value, or 2 + 2 K with a support of K tokens.

    Attributes:
        hits, misses: responses looked up and found, or not.
    """

    def __init__(self, *, max_values: int) -> None:
        self._max_values = max_values
        self._scores: OrderedDict[bytes, TokenScores] = OrderedDict()
        self._num_values = 0
        self.hits = 0
        self.misses = 0

    @property
    def num_values(self) -> int:
        """Values remembered now."""
        return self._num_values

    def get(self, key: bytes) -> TokenScores | None:
        """Scores of a response, or None. They are the cache's own: do not write to them."""
        scores = self._scores.get(key)
        if scores is None:
            self.misses += 1
            return None
        self.hits += 1
        self._scores.move_to_end(key)
        return scores

    def put(self, key: bytes, scores: TokenScores) -> None:
        """Remember a response's scores. Not kept: incomplete scores (their cause may pass), and an empty or too large response."""
        if key in self._scores or not 0 < scores.num_values <= self._max_values or not scores.is_complete:
            return
        while self._num_values + scores.num_values > self._max_values:
            _, forgotten = self._scores.popitem(last=False)
            self._num_values -= forgotten.num_values
        # A copy: a slice would keep the scores of its whole group alive.
        self._scores[key] = scores.copy()
        self._num_values += scores.num_values


class CachedScorer:
    """A `Scorer` that asks another one only for responses it does not remember, and for equal responses of a group once."""

    def __init__(self, scorer: Scorer, *, teacher: str, cache: ScoreCache) -> None:
        self._scorer = scorer
        self._teacher = teacher
        self._cache = cache

    async def score(
        self,
        prompt_ids: Array,
        response_ids: Array,
        response_offsets: Array,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        keys = response_keys(self._teacher, temperature, support, prompt_ids, response_ids, response_offsets)
        responses = [slice(start, end) for start, end in itertools.pairwise(response_offsets.tolist())]
        known: dict[bytes, TokenScores] = {}
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
            scored = await self._scorer.score(prompt_ids, np.concatenate(parts), offsets, temperature, support)
            for key, (start, end) in zip(unknown, itertools.pairwise(offsets.tolist()), strict=True):
                self._cache.put(key, scored[start:end])
                known[key] = scored[start:end]
        scores = [known[key] for key, response in zip(keys, responses, strict=True) if response.start < response.stop]
        if not scores:  # Costs the engine no forward pass, and it alone knows the size of a full support.
            return await self._scorer.score(prompt_ids, response_ids, response_offsets, temperature, support)
        return TokenScores.concatenate(scores)

    async def check_health(self) -> None:
        await self._scorer.check_health()

    def close(self) -> None:
        self._scorer.close()
