"""One replica of the teacher: a Serve deployment class around a scoring engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from actors.engines.scorer import Scorer
from actors.experience.group import ColumnsRef
from actors.teacher.quota import Activity, TeacherStats
from actors.teacher.score_cache import CachedScorer, ScoreCache
from rlad.config import TeacherConfig
from rlad.contracts import Columns, RolloutGroup, TeacherScores, TeacherSupport
from rlad.data.chat import tokenizer_fingerprint as fingerprint_of
from rlad.errors import DeadlineError, EngineError, VocabularyMismatchError
from rlad.model_fingerprint import model_fingerprint, output_size
from rlad.teacher.wire_format import TeacherIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was scored: so many tokens, by the model with this fingerprint."""

    num_tokens: int
    teacher: str


class TeacherServer:
    """One replica."""

    def __init__(self, config: TeacherConfig, *, max_groups_per_client: int | None = None) -> None:
        """Fingerprint the model and start its engine.

        Args:
            max_groups_per_client: that may be under way here at once; None where there is one client, which may have all of it.

        Raises:
            EngineError: the engine cannot run this model.
        """
        if not Path(config.path).is_dir():
            raise EngineError(f"the teacher's model directory {config.path} does not exist on this node")
        tokenizer = fingerprint_of(config.path)
        self._identity = TeacherIdentity(
            teacher=model_fingerprint(Path(config.path), tokenizer=tokenizer),
            tokenizer=tokenizer,
            engine=config.engine,
            vocabulary=output_size(Path(config.path)),
            max_groups_per_client=max_groups_per_client or 0,
        )
        self._timeout_s = config.timeout_s
        self._cache = ScoreCache(max_values=config.cache_tokens)
        self._scorer = CachedScorer(_build_scorer(config), teacher=self._identity.teacher, cache=self._cache)
        self._activity = Activity(max_groups_per_client=max_groups_per_client)

    async def identity(self) -> TeacherIdentity:
        return self._identity

    async def score(
        self, group_refs: list[ColumnsRef], tokenizer_fingerprint: str, support: TeacherSupport = None, client: str = ""
    ) -> AsyncIterator[Columns | Receipt]:
        """Score one group.

        Args:
            group_refs: one reference to a `RolloutGroup`'s columns, in a list so that Serve passes it on unresolved.
            tokenizer_fingerprint: of the model that sampled the group.
            support: what to score beside the sampled tokens.
            client: who asks.

        Yields:
            First the columns of its `TeacherScores`, then a receipt: the caller can wait for it, and learn of an error from it, without fetching the
            columns.

        Raises:
            VocabularyMismatchError: the client's token ids mean something else here.
            QuotaError: the client has as much under way here as it may.
            DeadlineError: the group's columns did not arrive.
            EngineError: the engine refused the group or failed.
        """
        if tokenizer_fingerprint != self._identity.tokenizer:
            raise VocabularyMismatchError(
                f"the teacher's tokenizer is {self._identity.tokenizer}, the student's {tokenizer_fingerprint}: "
                "token ids cannot be compared, use a teacher and a student with one vocabulary"
            )
        with self._activity.of(client):
            try:
                group = RolloutGroup.from_columns(await asyncio.wait_for(_value_of(group_refs[0]), self._timeout_s))
            except TimeoutError as error:
                raise DeadlineError(
                    f"the columns of a group to score did not arrive within {self._timeout_s:g} s"
                ) from error
            self._require_known_tokens(group)
            scores = await self._scorer.score(
                group.prompt_ids, group.response_ids, group.response_offsets, group.temperature, support
            )
            self._activity.count(group.num_tokens)
        yield TeacherScores(
            uid=group.uid, attempt=group.attempt, teacher=self._identity.teacher, **scores.flat_columns()
        ).to_columns()
        yield Receipt(num_tokens=group.num_tokens, teacher=self._identity.teacher)

    async def stats(self) -> TeacherStats:
        return self._activity.stats(cache_hits=self._cache.hits, cache_misses=self._cache.misses)

    async def check_health(self) -> None:
        """Serve calls this, and replaces the replica when it raises."""
        await self._scorer.check_health()

    def _require_known_tokens(self, group: RolloutGroup) -> None:
        """A token without an embedding fails the whole batch that it is in, and on a GPU the process: other clients' groups too."""
        for ids in (group.prompt_ids, group.response_ids):
            if len(ids) and not 0 <= ids.min() <= ids.max() < self._identity.vocabulary:
                raise EngineError(
                    f"group {group.uid} has token ids from {ids.min()} to {ids.max()}, the teacher's vocabulary goes from 0 to {self._identity.vocabulary - 1}"
                )

    def __del__(self) -> None:
        """Serve calls this after the last group, before it ends the process."""
        scorer: Scorer | None = getattr(self, "_scorer", None)  # missing where the constructor failed
        if scorer is not None:
            scorer.close()


def _build_scorer(config: TeacherConfig) -> Scorer:
    match config.engine:
        case "vllm":
            from actors.engines.vllm_engine.scorer import VllmScorer

            return VllmScorer(config)
        case "transformers":
            from actors.engines.hf_engine.scorer import TransformersScorer

            return TransformersScorer(config)


async def _value_of(ref: ColumnsRef) -> Columns:
    columns: Columns = await ref
    return columns
