"""The driver's side of the verifier pool."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from actors.experience.batch_shards import ColumnsRef
from actors.messages import JudgedGroup
from actors.pool.pool import ActorPool, PoolState
from actors.remote_errors import translated
from actors.verifier.worker import VerifierWorker, build_verifiers
from rlad.contracts import Outcome
from rlad.errors import WorkerLostError
from rlad.verifiers import VerifierConfig

if TYPE_CHECKING:  # with it would come all models of the configuration, which an actor has no use for
    from rlad.config import VerifierPoolConfig

_ATTEMPTS = 3


MAX_RESTARTS = 3


# So many responses of a group may time out, one after the other, before the worker itself counts as hung.
_TIMEOUTS_PER_GROUP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierStats:
    """What the pool has done.

    Attributes:
        busy_s: seconds that processes spent on groups; idle is the rest of `processes` times the wall clock.
        processes: that judge now, over all workers.
        num_groups: judged.
        outcomes: responses by outcome.
    """

    busy_s: float
    processes: int
    num_groups: int
    outcomes: dict[Outcome, int]


class JudgingPool:
    """The driver's side of actors that judge groups. All methods belong to one event loop."""

    def __init__(self, pool: ActorPool, *, processes_per_worker: int, deadline_s: float, who: str) -> None:
        """
        Args:
            pool: of workers whose `verify` takes a group's columns. Its capacity is what a worker judges at once, so that a group's deadline counts no time
                in a worker's queue.
            processes_per_worker: groups that a worker judges at once.
            deadline_s: of one group, once a worker has it.
            who: a worker, in errors.
        """
        self._pool = pool
        self._processes_per_worker = processes_per_worker
        self._deadline_s = deadline_s
        self._who = who
        self._busy_s = 0.0
        self._num_groups = 0
        self._outcomes: Counter[Outcome] = Counter()

    async def start(self) -> None:
        """SubmitGroup up all workers.

        Raises:
            DeadlineError, PoolExhaustedError: a worker was not up in time, or failed; the message says why.
        """
        await self._pool.start()

    async def verify(self, group_ref: ColumnsRef, *, num_tokens: int, with_texts: bool = False) -> JudgedGroup:
        """Have a group judged.

        Args:
            group_ref: reference to the columns of a `RolloutGroup`.
            num_tokens: its response tokens.
            with_texts: also bring back texts and answers. For an evaluation: in training they have no business in the driver.

        Raises:
            WorkerLostError: workers died, or hung, in every attempt.
            PoolExhaustedError: no worker is left.
            ConfigError: the group's task has no verifier.
            EngineError: a worker failed on the group.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(WorkerLostError), stop=stop_after_attempt(_ATTEMPTS), reraise=True
        )
        with translated(who=self._who):
            judged: JudgedGroup = await retrying(self._verify_once, group_ref, num_tokens, with_texts)
        self._busy_s += judged.elapsed_s
        self._num_groups += 1
        self._outcomes.update(Outcome(outcome) for outcome in judged.outcomes)
        return judged

    def stats(self) -> VerifierStats:
        """Since the pool's start."""
        processes = self._pool.state().ready * self._processes_per_worker
        return VerifierStats(
            busy_s=self._busy_s, processes=processes, num_groups=self._num_groups, outcomes=dict(self._outcomes)
        )

    def state(self) -> PoolState:
        return self._pool.state()

    def resize(self, workers: int) -> None:
        """Grow or shrink the pool while it judges; those that go finish their groups."""
        self._pool.resize(workers)

    async def close(self) -> None:
        """Kill all workers, and their processes with them. May be called twice."""
        await self._pool.close()

    async def _verify_once(self, group_ref: ColumnsRef, num_tokens: int, with_texts: bool) -> JudgedGroup:
        async with self._pool.lease(1) as worker:  # a group takes one process, whatever its length
            try:
                async with asyncio.timeout(self._deadline_s):
                    judged: JudgedGroup = await worker.verify.remote(group_ref, with_texts)
                return judged
            except TimeoutError as error:
                # Its own waits all have shorter deadlines. The pool kills and replaces it.
                raise WorkerLostError(
                    f"it hung: no answer within {self._deadline_s:g} s on a group of {num_tokens} tokens"
                ) from error


class VerifierPool(JudgingPool):
    """The driver's side of the workers with verifiers. All methods belong to one event loop."""

    def __init__(
        self,
        config: VerifierPoolConfig,
        verifiers: Mapping[str, VerifierConfig],
        *,
        tokenizer_path: str,
        start_timeout_s: float,
        label_selector: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            config: size of the pool, and the deadline of one response.
            verifiers: settings by the prompts' `task`.
            tokenizer_path: model directory whose `tokenizer.json` decodes the responses.
            start_timeout_s: deadline of the pool's start, and of a replacement's.
            label_selector: of the nodes that the workers may run on; any by default.
        """

        def spawn(number: int) -> ActorHandle:
            worker = ray.remote(VerifierWorker).options(
                num_cpus=config.cpus_per_worker,
                max_concurrency=config.processes_per_worker,
                label_selector=label_selector or {},
            )
            return worker.remote(
                build_verifiers=functools.partial(build_verifiers, dict(verifiers)),
                tokenizer_path=tokenizer_path,
                processes=config.processes_per_worker,
                timeout_s=config.timeout_s,
            )

        pool = ActorPool(
            name="verifier",
            size=config.workers,
            spawn=spawn,
            prepare=None,
            max_restarts=MAX_RESTARTS,
            start_timeout_s=start_timeout_s,
            capacity=config.processes_per_worker,
        )
        deadline_s = _TIMEOUTS_PER_GROUP * config.timeout_s + start_timeout_s
        super().__init__(
            pool, processes_per_worker=config.processes_per_worker, deadline_s=deadline_s, who="a verifier worker"
        )
