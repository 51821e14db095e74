"""Cache of a teacher's scores for whole responses, keyed by a hash of everything the scores depend on."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import xxhash
from cachetools import LRUCache

from actors.engines.scorer import Scorer, TokenScores
from rlad.contracts import Array, TeacherSupport

# Numbers in the keys for supports that are not a number of tokens.
_SCORED = {None: 0, "full": -1, "hidden_states": -2}


def response_keys(
    teacher: str,
    temperature: float,
    support: TeacherSupport,
    prompt_ids: Array,
    response_ids: Array,
    response_offsets: Array,
) -> list[bytes]:
    """Return a 128-bit key for each response, over teacher, temperature, support, prompt tokens and response tokens.

    Args:
        teacher: Fingerprint of the teacher's weights and tokenizer.
        temperature: Temperature at which the tokens are scored.
        support: Tokens scored in addition to the sampled ones.
        prompt_ids: Prompt tokens, int32 [P].
        response_ids: Concatenated response tokens, int32 [N].
        response_offsets: Offsets of the responses in `response_ids`, int64 [G + 1].
    """
    name = teacher.encode()
    scored = support if isinstance(support, int) else _SCORED[support]
    # The lengths are hashed too, so that different (teacher, prompt, response) never give the same bytes.
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
    """Least recently used cache of response scores, bounded by the number of stored 4-byte values.

    Args:
        max_values: Maximum number of stored values; 0 disables the cache. A token has one value, 2 + 2 K values with a
            support of K tokens, or 1 + H / 2 with a hidden state of size H in bfloat16.

    Attributes:
        hits: Number of responses that were looked up and found.
        misses: Number of responses that were looked up and not found.
    """

    def __init__(self, *, max_values: int) -> None:
        self._scores: LRUCache[bytes, TokenScores] = LRUCache(max_values, getsizeof=lambda scores: scores.num_values)
        self.hits = 0
        self.misses = 0

    @property
    def num_values(self) -> int:
        """Number of stored values."""
        return int(self._scores.currsize)

    def get(self, key: bytes) -> TokenScores | None:
        """Return the scores of a response, or None. The cache owns them: do not write to them."""
        scores = self._scores.get(key)
        if scores is None:
            self.misses += 1
        else:
            self.hits += 1
        return scores

    def put(self, key: bytes, scores: TokenScores) -> None:
        """Store the scores of a response.

        Ignores empty responses, responses larger than the cache, and incomplete scores, whose cause may be temporary.
        """
        if key in self._scores or not 0 < scores.num_values <= self._scores.maxsize or not scores.is_complete:
            return
        self._scores[key] = scores.copy()  # a slice would keep the scores of its whole group alive


class CachedScorer:
    """`Scorer` with a cache. It forwards only unknown responses, and equal responses of a group once."""

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
        """Score one group, see `Scorer.score`."""
        keys = response_keys(self._teacher, temperature, support, prompt_ids, response_ids, response_offsets)
        responses = [slice(start, end) for start, end in itertools.pairwise(response_offsets.tolist())]
        known: dict[bytes, TokenScores] = {}
        unknown: dict[bytes, slice] = {}
        for key, response in zip(keys, responses, strict=True):
            if key in known or key in unknown or response.start == response.stop:
                continue
            cached = self._cache.get(key)
            if cached is None:
                unknown[key] = response
            else:
                known[key] = cached
        if unknown:
            parts = [response_ids[response] for response in unknown.values()]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            scored = await self._scorer.score(prompt_ids, np.concatenate(parts), offsets, temperature, support)
            for key, (start, end) in zip(unknown, itertools.pairwise(offsets.tolist()), strict=True):
                self._cache.put(key, scored[start:end])
                known[key] = scored[start:end]
        scores = [known[key] for key, response in zip(keys, responses, strict=True) if response.start < response.stop]
        if not scores:  # no forward pass; only the engine knows the size of a full support
            return await self._scorer.score(prompt_ids, response_ids, response_offsets, temperature, support)
        return TokenScores.concatenate(scores)

    async def check_health(self) -> None:
        await self._scorer.check_health()

    def close(self) -> None:
        self._scorer.close()
