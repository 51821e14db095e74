"""Pools of reward models, and the one place that groups are sent to for their verdicts, whoever gives them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.experience.batch_shards import ColumnsRef
from actors.messages import JudgedGroup
from actors.pool.placement import reward_pool_name, selector_of
from actors.pool.pool import ActorPool
from actors.verifier.pool import MAX_RESTARTS, JudgingPool, VerifierPool, VerifierStats
from actors.verifier.worker import load_tokenizer
from rlad.contracts import Columns, Outcome, RolloutGroup, Verdicts
from rlad.errors import VocabularyMismatchError
from rlad.verifiers import RewardModelVerifierConfig, VerifierConfig, reward_models

if TYPE_CHECKING:  # with it would come all models of the configuration, which an actor has no use for
    from rlad.config import ClusterConfig, VerifierPoolConfig


class RewardWorker:
    """An actor with one reward model. It scores one group at a time."""

    def __init__(self, config: RewardModelVerifierConfig, *, tokenizer_path: str) -> None:
        """
        Raises:
            EngineError: the model cannot be loaded.
            VocabularyMismatchError: its tokenizer is not the student's.
            ConfigError: the student's directory has no `tokenizer.json`.
        """
        from actors.engines.hf_engine.reward_model import RewardModelEngine
        from rlad.data.chat import tokenizer_fingerprint

        if tokenizer_fingerprint(config.path) != tokenizer_fingerprint(tokenizer_path):
            raise VocabularyMismatchError(
                f"the reward model {config.path} has another vocabulary than the student {tokenizer_path}, whose token ids it is to read: "
                "both must share one tokenizer"
            )
        self._config = config
        self._tokenizer = load_tokenizer(tokenizer_path)
        self._engine = RewardModelEngine(config)

    def verify(self, columns: Columns, with_texts: bool = False) -> JudgedGroup:
        """Score a group. A truncated response is scored as it stands, and its outcome is unparseable.

        Args:
            columns: of a `RolloutGroup`.
            with_texts: also give texts back, for an evaluation.

        Raises:
            EngineError: a sequence is too long for the model, or its score is not finite.
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
        return JudgedGroup(verdicts=verdicts, elapsed_s=elapsed_s, texts=texts, answers=None)


class RewardPool(JudgingPool):
    """The driver's side of one reward model's workers. All methods belong to one event loop."""

    def __init__(
        self,
        config: RewardModelVerifierConfig,
        *,
        task: str,
        tokenizer_path: str,
        start_timeout_s: float,
        label_selector: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            config: the model, and the pool's size.
            task: of the groups that it scores; it names the pool.
            tokenizer_path: the student's model directory.
            start_timeout_s: deadline of the pool's start, and of a replacement's.
            label_selector: of the nodes that the workers may run on; any by default.
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
            max_restarts=MAX_RESTARTS,
            start_timeout_s=start_timeout_s,
            capacity=1,
        )
        super().__init__(pool, processes_per_worker=1, deadline_s=config.timeout_s, who=f"a worker of {name}")


class VerdictPools:
    """Where groups go for their verdicts: to their task's reward model, or else to the verifiers. All methods belong to one event loop."""

    def __init__(
        self,
        config: VerifierPoolConfig,
        verifiers: Mapping[str, VerifierConfig],
        *,
        tokenizer_path: str,
        start_timeout_s: float,
        cluster: ClusterConfig | None = None,
    ) -> None:
        """
        Args:
            config: of the verifiers' pool.
            verifiers: settings by the prompts' `task`, reward models among them.
            tokenizer_path, start_timeout_s: as for `VerifierPool`.
            cluster: says whether each pool has nodes of its own; by default none has.
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
        )
        self._reward_models = {
            task: RewardPool(
                model,
                task=task,
                tokenizer_path=tokenizer_path,
                start_timeout_s=start_timeout_s,
                label_selector=selector(reward_pool_name(task)),
            )
            for task, model in models.items()
        }

    @property
    def pools(self) -> tuple[JudgingPool, ...]:
        """All pools, to be started together."""
        return self._verifiers, *self._reward_models.values()

    async def verify(
        self, group_ref: ColumnsRef, *, task: str, num_tokens: int, with_texts: bool = False
    ) -> JudgedGroup:
        """Have a group of a task judged. Arguments and errors as for `JudgingPool.verify`."""
        pool = self._reward_models.get(task, self._verifiers)
        return await pool.verify(group_ref, num_tokens=num_tokens, with_texts=with_texts)

    def stats(self) -> VerifierStats:
        """Of all pools together, since their start."""
        each = [pool.stats() for pool in self.pools]
        return VerifierStats(
            busy_s=sum(stats.busy_s for stats in each),
            processes=sum(stats.processes for stats in each),
            num_groups=sum(stats.num_groups for stats in each),
            outcomes=dict(sum((Counter(stats.outcomes) for stats in each), Counter())),
        )
