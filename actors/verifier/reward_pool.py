"""Reward-model pools, and `VerdictPools`, which sends each group to the pool that judges its task."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.experience.group import ColumnsRef
from actors.health.monitor import HeartbeatMonitor
from actors.messages import VerifierResult
from actors.pool.placement import reward_pool_name, selector_of
from actors.pool.pool import ActorPool
from actors.verifier.pool import JudgingPool, VerifierPool, VerifierStats
from actors.verifier.worker import load_fast_tokenizer
from rlad.contracts import Columns, Outcome, RolloutGroup, Verdicts
from rlad.errors import VocabularyMismatchError
from rlad.verifiers import RewardModelVerifierConfig, VerifierConfig, reward_models

if TYPE_CHECKING:  # importing it would load all configuration models, which the actor does not use
    from rlad.config import ClusterConfig, VerifierPoolConfig

_MAX_RESTARTS = 3


class RewardWorker:
    """Actor with one reward model. Scores one group at a time."""

    def __init__(self, config: RewardModelVerifierConfig, *, tokenizer_path: str) -> None:
        """
        Raises:
            EngineError: The model cannot be loaded.
            VocabularyMismatchError: Its tokenizer differs from the student's.
            ConfigError: The student's directory has no `tokenizer.json`.
        """
        from actors.engines.hf_engine.reward_model import RewardModelEngine
        from rlad.data.chat import load_tokenizer
        from rlad.models.locations import fetch_model
        from rlad.tokenizers.vocabulary import scoring_problem, vocabulary_of

        config = config.model_copy(update={"path": str(fetch_model(config.path))})
        tokenizer_path = str(fetch_model(tokenizer_path, weights=False))
        student, model = vocabulary_of(load_tokenizer(tokenizer_path)), vocabulary_of(load_tokenizer(config.path))
        if (problem := scoring_problem(student, model)) is not None:
            raise VocabularyMismatchError(
                f"reward model {config.path} and student {tokenizer_path} have different vocabularies: the reward "
                f"model reads the student's token ids, but {problem}"
            )
        self._config = config
        self._tokenizer = load_fast_tokenizer(tokenizer_path)
        self._engine = RewardModelEngine(config)

    def verify(self, columns: Columns, with_texts: bool = False) -> VerifierResult:
        """Score a group. A truncated response is scored as it is, with the outcome `UNPARSEABLE`.

        Args:
            columns: Columns of a `RolloutGroup`.
            with_texts: Also return texts, for evaluation.

        Raises:
            EngineError: A sequence is too long for the model, or its score is not finite.
        """
        start = time.perf_counter()
        group = RolloutGroup.from_columns(columns)
        rewards = self._config.rewards(self._engine.score(group.prompt_ids, group.response_ids, group.response_offsets))
        outcomes = np.where(rewards >= self._config.correct_from, Outcome.CORRECT, Outcome.WRONG)
        outcomes = np.where(group.is_truncated, Outcome.UNPARSEABLE, outcomes).astype(np.uint8)
        elapsed_s = time.perf_counter() - start
        verdicts = Verdicts(
            uid=group.uid,
            attempt=group.attempt,
            rewards=rewards,
            outcomes=outcomes,
            elapsed_s=np.full(group.num_responses, elapsed_s / group.num_responses, np.float32),
        )
        texts = None
        if with_texts:
            token_ids = [group.response_ids[group.response(index)].tolist() for index in range(group.num_responses)]
            texts = tuple(self._tokenizer.decode_batch(token_ids, skip_special_tokens=True))
        return VerifierResult(verdicts=verdicts, elapsed_s=elapsed_s, texts=texts, answers=None)


class RewardPool(JudgingPool):
    """Driver's side of the workers of one reward model. All methods belong to one event loop."""

    def __init__(
        self,
        config: RewardModelVerifierConfig,
        *,
        task: str,
        tokenizer_path: str,
        start_timeout_s: float,
        label_selector: dict[str, str] | None = None,
        monitor: HeartbeatMonitor | None = None,
    ) -> None:
        """
        Args:
            config: The model and the size of the pool.
            task: Task of the groups that it scores; part of the pool's name.
            tokenizer_path: Location of the student.
            start_timeout_s: Deadline of the start of a worker, seconds.
            label_selector: Labels of the nodes that workers may run on; any node by default.
            monitor: Ends workers whose process was stopped.
        """

        def spawn(number: int) -> ActorHandle:
            worker = ray.remote(RewardWorker).options(
                num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, label_selector=label_selector or {}
            )
            return worker.remote(config, tokenizer_path=tokenizer_path)

        name = reward_pool_name(task)
        pool = ActorPool(
            name=name,
            size=config.workers,
            spawn=spawn,
            prepare=None,
            max_restarts=_MAX_RESTARTS,
            start_timeout_s=start_timeout_s,
            capacity=1,
            monitor=monitor,
        )
        super().__init__(pool, processes_per_worker=1, deadline_s=config.timeout_s, who=f"a worker of {name}")


class VerdictPools:
    """All pools that judge groups: a reward-model pool for each task that has one, and the verifiers for all others.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        config: VerifierPoolConfig,
        verifiers: Mapping[str, VerifierConfig],
        *,
        tokenizer_path: str,
        start_timeout_s: float,
        cluster: ClusterConfig | None = None,
        monitor: HeartbeatMonitor | None = None,
    ) -> None:
        """
        Args:
            config: Settings of the verifier pool.
            verifiers: Verifier settings by task, reward models included.
            tokenizer_path, start_timeout_s: As for `VerifierPool`.
            cluster: Decides whether each pool has nodes of its own; by default none has.
            monitor: Ends workers whose process was stopped.
        """

        def selector(pool: str) -> dict[str, str]:
            return {} if cluster is None else selector_of(cluster, pool)

        models = reward_models(verifiers)
        judged = {task: verifier for task, verifier in verifiers.items() if task not in models}
        self._verifiers = VerifierPool(
            config,
            judged,
            tokenizer_path=tokenizer_path,
            start_timeout_s=start_timeout_s,
            label_selector=selector("verifier"),
            monitor=monitor,
        )
        self._reward_models = {
            task: RewardPool(
                model,
                task=task,
                tokenizer_path=tokenizer_path,
                start_timeout_s=start_timeout_s,
                label_selector=selector(reward_pool_name(task)),
                monitor=monitor,
            )
            for task, model in models.items()
        }

    @property
    def pools(self) -> tuple[JudgingPool, ...]:
        """All pools, to be started at once."""
        return self._verifiers, *self._reward_models.values()

    async def verify(
        self, columns: ColumnsRef, *, task: str, num_tokens: int, with_texts: bool = False
    ) -> VerifierResult:
        """Judge a group of a task. Arguments and errors as for `JudgingPool.verify`."""
        pool = self._reward_models.get(task, self._verifiers)
        return await pool.verify(columns, num_tokens=num_tokens, with_texts=with_texts)

    def stats(self) -> VerifierStats:
        """Return the work of all pools since they started."""
        each = [pool.stats() for pool in self.pools]
        return VerifierStats(
            busy_s=sum(stats.busy_s for stats in each),
            processes=sum(stats.processes for stats in each),
            num_groups=sum(stats.num_groups for stats in each),
            outcomes=dict(sum((Counter(stats.outcomes) for stats in each), Counter())),
        )
