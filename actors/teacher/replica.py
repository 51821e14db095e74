"""Teacher replica: a Serve deployment class around a scoring engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ray import serve
from ray.actor import ActorHandle

from actors.engines.scorer import Scorer
from actors.experience.group import ColumnsRef
from actors.health.processes import announce, withdraw
from actors.teacher.owner import delete_with_owner
from actors.teacher.quota import Activity, TeacherStats
from actors.teacher.score_cache import CachedScorer, ScoreCache
from rlad.config import TeacherConfig
from rlad.contracts import Array, Columns, RolloutGroup, TeacherScores, TeacherSupport
from rlad.data.chat import prefix_fingerprints
from rlad.data.chat import tokenizer_fingerprint as fingerprint_of
from rlad.errors import DeadlineError, VocabularyMismatchError
from rlad.model_fingerprint import context_tokens, model_fingerprint, output_size
from rlad.models.locations import fetch_model
from rlad.teacher.limits import require_scorable
from rlad.teacher.wire_format import TeacherIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Receipt of one scored group.

    Attributes:
        num_tokens: Number of scored response tokens.
        teacher: Fingerprint of the model that scored them.
    """

    num_tokens: int
    teacher: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAnnouncement:
    """Announcement of a replica to the monitor of its run.

    Attributes:
        run_id: The run.
        pool: Name of the pool.
    """

    run_id: str
    pool: str

    def make(self, *, has_engine: bool) -> None:
        """Announce the calling process, which is a replica."""
        replica = serve.get_replica_context().replica_id.unique_id
        announce(self.run_id, f"{self.pool}-{replica}", role=self.pool, has_engine=has_engine)


class TeacherServer:
    """One replica of a teacher."""

    def __init__(
        self,
        config: TeacherConfig,
        *,
        max_groups_per_client: int | None = None,
        vocabulary_size: int | None = None,
        owner: ActorHandle | None = None,
        announced: ReplicaAnnouncement | None = None,
    ) -> None:
        """Fingerprint the model and start its engine.

        Args:
            config: Settings of the teacher. `path` is the location of the model, which is fetched to this node.
            max_groups_per_client: Maximum number of groups in progress per client; None means unlimited.
            owner: Actor of the run's driver; the application is deleted when it dies. None: the application stays.
            vocabulary_size: Number of token ids of the only student that this teacher serves. Later ids get probability
                0. None means all ids of the teacher.
            announced: Monitor to which the replica announces itself; None for a teacher that belongs to no run.

        Raises:
            PlanError: The model cannot be found or fetched.
            EngineError: The engine cannot run the model.
        """
        self._announced = announced
        if announced is not None:
            announced.make(has_engine=config.engine == "vllm")
        config = config.model_copy(update={"path": str(fetch_model(config.path))})
        tokenizer = fingerprint_of(config.path)
        self._identity = TeacherIdentity(
            teacher=model_fingerprint(Path(config.path), tokenizer=tokenizer),
            tokenizer=tokenizer,
            engine=config.engine,
            vocabulary=min(rows := output_size(Path(config.path)), vocabulary_size or rows),
            max_groups_per_client=max_groups_per_client or 0,
            # The driver of a run's own teacher has compared the vocabularies.
            shares_ids_with=prefix_fingerprints(config.path) if max_groups_per_client else (),
            context_tokens=context_tokens(Path(config.path)),
        )
        self._output_layer, self._hidden_bytes = _output_layer(config)
        self._timeout_s = config.timeout_s
        self._cache = ScoreCache(max_values=config.cache_tokens)
        self._scorer = CachedScorer(
            _build_scorer(config, vocabulary_size), teacher=self._identity.teacher, cache=self._cache
        )
        self._activity = Activity(max_groups_per_client=max_groups_per_client)
        self._owner = owner
        self._watching: asyncio.Task[None] | None = None

    async def identity(self) -> TeacherIdentity:
        """Return the identity of the teacher."""
        return self._identity

    async def score(
        self,
        group_refs: list[ColumnsRef],
        tokenizer_fingerprint: str,
        support: TeacherSupport = None,
        client: str = "",
        prompt_ids: Array | None = None,
    ) -> AsyncIterator[Columns | Receipt]:
        """Score one group.

        Args:
            group_refs: One reference to the columns of a `RolloutGroup`. It is in a list so that Serve does not resolve
                it.
            tokenizer_fingerprint: Fingerprint of the tokenizer of the model that sampled the group.
            support: Tokens to score in addition to the sampled ones.
            client: Name of the client, for quotas.
            prompt_ids: Prompt behind which the tokens are scored, int32 [P]; None means that of the group.

        Yields:
            First the columns of the group's `TeacherScores`, then a receipt. The caller awaits the receipt, and gets
            errors from it, without fetching the columns.

        Raises:
            VocabularyMismatchError: The client uses another tokenizer.
            QuotaError: The client has reached its quota.
            DeadlineError: The columns of the group did not arrive in time.
            ScoringRefusedError: The group cannot be scored, see `require_scorable`.
            EngineError: The engine refused the group or failed.
        """
        if not self._identity.reads(tokenizer_fingerprint):
            raise VocabularyMismatchError(
                f"the teacher's tokenizer is {self._identity.tokenizer}, the student's is {tokenizer_fingerprint}; "
                "use a teacher and a student with one vocabulary"
            )
        with self._activity.of(client):
            try:
                columns = await asyncio.wait_for(_value_of(group_refs[0]), self._timeout_s)
            except TimeoutError as error:
                raise DeadlineError(
                    f"the columns of a group did not arrive at the teacher within {self._timeout_s:g} s"
                ) from error
            # Limits, score cache and engine see the group behind this prompt only.
            group = RolloutGroup.from_columns(columns).behind(prompt_ids)
            require_scorable(group, support, vocabulary=self._identity.vocabulary, hidden_bytes=self._hidden_bytes)
            scores = await self._scorer.score(
                group.prompt_ids, group.response_ids, group.response_offsets, group.temperature, support
            )
            self._activity.count(group.num_tokens)
        yield TeacherScores(
            uid=group.uid,
            attempt=group.attempt,
            teacher=self._identity.teacher,
            output_layer=self._output_layer,
            **scores.flat_columns(),
        ).to_columns()
        yield Receipt(num_tokens=group.num_tokens, teacher=self._identity.teacher)

    async def stats(self) -> TeacherStats:
        """Return the statistics of this replica."""
        return self._activity.stats(cache_hits=self._cache.hits, cache_misses=self._cache.misses)

    async def check_health(self) -> None:
        """Check the engine. Serve calls this method and replaces the replica if it raises."""
        if self._owner is not None and self._watching is None:
            self._watching = asyncio.create_task(delete_with_owner(self._owner))
        await self._scorer.check_health()

    def __del__(self) -> None:
        """Close the engine. Serve calls this method after the last group, before it ends the process."""
        scorer: Scorer | None = getattr(self, "_scorer", None)  # missing if the constructor failed
        if scorer is not None:
            scorer.close()
        if scorer is not None and self._announced is not None:
            withdraw(self._announced.run_id)


def _output_layer(config: TeacherConfig) -> tuple[str, int]:
    """Return the SHA-256 of the output layer and the bytes of a hidden state; nothing if log-probabilities are sent.

    Raises:
        EngineError: Hidden states of this model are not enough to compute its log-probabilities.
    """
    if config.send == "logprobs":
        return "", 0
    import torch

    from rlad.models.output_layer import read_output_layer

    layer = read_output_layer(Path(config.path), getattr(torch, config.dtype))
    return layer.sha256, layer.weight.shape[1] * layer.weight.element_size()


def _build_scorer(config: TeacherConfig, vocabulary_size: int | None = None) -> Scorer:
    match config.engine:
        case "vllm" if config.send == "hidden_states":
            from actors.engines.vllm_engine.hidden_states import VllmHiddenStates

            return VllmHiddenStates(config)
        case "vllm":
            from actors.engines.vllm_engine.scorer import VllmScorer

            return VllmScorer(config, vocabulary_size=vocabulary_size)
        case "transformers":
            from actors.engines.hf_engine.scorer import TransformersScorer

            return TransformersScorer(config, vocabulary_size=vocabulary_size)


async def _value_of(ref: ColumnsRef) -> Columns:
    columns: Columns = await ref
    return columns
