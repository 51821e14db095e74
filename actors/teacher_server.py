"""One replica of the teacher: a Serve deployment class around a scoring engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path

from actors.engines.scorer import Scorer
from actors.model_fingerprint import model_fingerprint
from actors.parts import ColumnsRef
from actors.score_cache import CachedScorer, ScoreCache
from rlad.config import TeacherConfig
from rlad.contracts import Columns, RolloutGroup, TeacherScores, TeacherSupport
from rlad.data.chat import tokenizer_fingerprint as fingerprint_of
from rlad.errors import DeadlineError, EngineError, VocabularyMismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """Fingerprints of a teacher: of the whole model, and of its tokenizer."""

    teacher: str
    tokenizer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStats:
    """What a teacher has done since its replicas started, summed over them.

    Attributes:
        busy_s: seconds in which a replica had at least one group.
        num_groups, num_tokens: scored, from the cache or not.
        cache_hits, cache_misses: responses.
        ongoing_groups: being scored or waiting in a replica now.
    """

    busy_s: float = 0.0
    num_groups: int = 0
    num_tokens: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    ongoing_groups: int = 0

    def __add__(self, other: TeacherStats) -> TeacherStats:
        return TeacherStats(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


class TeacherServer:
    """One replica."""

    def __init__(self, config: TeacherConfig) -> None:
        """Fingerprint the model and start its engine.

        Raises:
            EngineError: the engine cannot run this model.
        """
        if not Path(config.path).is_dir():
            raise EngineError(f"the teacher's model directory {config.path} does not exist on this node")
        tokenizer = fingerprint_of(config.path)
        self._identity = TeacherIdentity(teacher=model_fingerprint(Path(config.path), tokenizer=tokenizer), tokenizer=tokenizer)
        self._timeout_s = config.timeout_s
        self._cache = ScoreCache(max_values=config.cache_tokens)
        self._scorer = CachedScorer(_build_scorer(config), teacher=self._identity.teacher, cache=self._cache)
        self._activity = _Activity()

    async def identity(self) -> TeacherIdentity:
        return self._identity

    async def score(self, group_refs: list[ColumnsRef], tokenizer_fingerprint: str, support: TeacherSupport = None) -> AsyncIterator[Columns | int]:
        """Score one group.

        Args:
            group_refs: one reference to a `RolloutGroup`'s columns, in a list so that Serve passes it on unresolved.
            tokenizer_fingerprint: of the model that sampled the group.
            support: what to score beside the sampled tokens.

        Yields:
            First the columns of its `TeacherScores`, then as a receipt the number of tokens scored: the caller can wait for the receipt,
            and learn of an error from it, without fetching the columns.

        Raises:
            VocabularyMismatchError: the client's token ids mean something else here.
            DeadlineError: the group's columns did not arrive.
            EngineError: the engine refused the group or failed.
        """
        if tokenizer_fingerprint != self._identity.tokenizer:
            raise VocabularyMismatchError(
                f"the teacher's tokenizer is {self._identity.tokenizer}, the student's {tokenizer_fingerprint}: "
                "token ids cannot be compared, use a teacher and a student with one vocabulary"
            )
        with self._activity:
            try:
                group = RolloutGroup.from_columns(await asyncio.wait_for(_value_of(group_refs[0]), self._timeout_s))
            except TimeoutError as error:
                raise DeadlineError(f"the columns of a group to score did not arrive within {self._timeout_s:g} s") from error
            scores = await self._scorer.score(group.prompt_ids, group.response_ids, group.response_offsets, group.temperature, support)
            self._activity.count(group.num_tokens)
        yield TeacherScores(uid=group.uid, attempt=group.attempt, teacher=self._identity.teacher, **scores.flat_columns()).to_columns()
        yield group.num_tokens

    async def stats(self) -> TeacherStats:
        return self._activity.stats(self._cache)

    async def check_health(self) -> None:
        """Serve calls this, and replaces the replica when it raises."""
        await self._scorer.check_health()

    def __del__(self) -> None:
        """Serve calls this after the last group, before it ends the process."""
        scorer: Scorer | None = getattr(self, "_scorer", None)  # missing where the constructor failed
        if scorer is not None:
            scorer.close()


def _build_scorer(config: TeacherConfig) -> Scorer:
    match config.engine:
        case "vllm":
            from actors.engines.vllm_scorer import VllmScorer

            return VllmScorer(config)
        case "transformers":
            from actors.engines.transformers_scorer import TransformersScorer

            return TransformersScorer(config)


async def _value_of(ref: ColumnsRef) -> Columns:
    columns: Columns = await ref
    return columns


class _Activity:
    """Counts groups and tokens, and the time in which there was at least one group. A context manager around each group; one event loop only."""

    def __init__(self) -> None:
        self._ongoing = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._groups = 0
        self._tokens = 0

    def __enter__(self) -> None:
        if self._ongoing == 0:
            self._busy_since = time.perf_counter()
        self._ongoing += 1

    def __exit__(self, *_: object) -> None:
        self._ongoing -= 1
        if self._ongoing == 0:
            self._busy_s += time.perf_counter() - self._busy_since

    def count(self, num_tokens: int) -> None:
        self._groups += 1
        self._tokens += num_tokens

    def stats(self, cache: ScoreCache) -> TeacherStats:
        busy_s = self._busy_s + (time.perf_counter() - self._busy_since if self._ongoing else 0.0)
        return TeacherStats(
            busy_s=busy_s,
            num_groups=self._groups,
            num_tokens=self._tokens,
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            ongoing_groups=self._ongoing,
        )
