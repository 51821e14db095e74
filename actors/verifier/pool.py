"""The driver's side of the verifier pool."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle

from actors.experience.group import ColumnsRef
from actors.health.monitor import HeartbeatMonitor
from actors.messages import VerifierResult
from actors.pool.pool import ActorPool, PoolState
from actors.remote_errors import translated
from actors.verifier.failures import FailureLimit
from actors.verifier.worker import VerifierWorker, build_verifiers, tagged_verifiers
from rlad.contracts import Outcome
from rlad.errors import RladError, WorkerLostError
from rlad.failures import Action, decide, event_of_call
from rlad.verifiers import VerifierConfig

if TYPE_CHECKING:  # importing it would load all configuration models, which the actor does not use
    from rlad.config import VerifierPoolConfig

# Number of retries of a group whose worker was lost.
_MAX_RETRIES = 2
# Number of responses of a group that may time out in sequence before the worker itself counts as hung.
_TIMEOUTS_PER_GROUP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierStats:
    """Work of the pool since it started.

    Attributes:
        busy_s: Seconds that judge processes spent on groups. Idle time is the rest of `processes` times the elapsed
            time.
        processes: Present number of judge processes over all workers.
        num_groups: Number of judged groups.
        outcomes: Number of responses by outcome.
    """

    busy_s: float
    processes: int
    num_groups: int
    outcomes: dict[Outcome, int]


class JudgingPool:
    """Driver's side of actors that judge groups. All methods belong to one event loop."""

    def __init__(
        self,
        pool: ActorPool,
        *,
        processes_per_worker: int,
        deadline_s: float,
        who: str,
        max_failed_fraction: float = 1.0,
    ) -> None:
        """
        Args:
            pool: Workers whose `verify` takes a group's columns. The pool's capacity equals the number of groups that a
                worker judges at once, so that a group's deadline includes no time in a worker's queue.
            processes_per_worker: Number of groups that a worker judges at once.
            deadline_s: Deadline of one group in seconds, from the moment a worker has it.
            who: Name of a worker in error messages.
            max_failed_fraction: Largest fraction of responses whose verification may time out or fail.
        """
        self._failures = FailureLimit(max_failed_fraction)
        self._pool = pool
        self._processes_per_worker = processes_per_worker
        self._deadline_s = deadline_s
        self._who = who
        self._busy_s = 0.0
        self._num_groups = 0
        self._outcomes: Counter[Outcome] = Counter()

    async def start(self) -> None:
        """Start all workers.

        Raises:
            DeadlineError, PoolExhaustedError: A worker was not ready in time or failed; the message gives the reason.
        """
        await self._pool.start()

    async def verify(self, columns: ColumnsRef, *, num_tokens: int, with_texts: bool = False) -> VerifierResult:
        """Judge a group on one of the workers.

        Args:
            columns: Reference to the columns of a `RolloutGroup`.
            num_tokens: Response tokens of the group.
            with_texts: Also return texts and answers. For evaluation only.

        Raises:
            WorkerLostError: Workers died or hung in every attempt.
            PoolExhaustedError: No worker is left.
            ConfigError: The group's task has no verifier.
            EngineError: A worker failed on the group.
            VerifierFailureError: Verification timed out or failed on too many of the latest responses.
        """
        with translated(who=self._who):
            result = await self._verify_repeatedly(columns, num_tokens, with_texts)
        self._busy_s += result.elapsed_s
        self._num_groups += 1
        self._outcomes.update(Outcome(outcome) for outcome in result.outcomes)
        self._failures.record(result.outcomes, result.problems or (None,) * len(result.outcomes))
        return result

    def stats(self) -> VerifierStats:
        """Return the work done since the pool started."""
        processes = self._pool.state().ready * self._processes_per_worker
        return VerifierStats(
            busy_s=self._busy_s, processes=processes, num_groups=self._num_groups, outcomes=dict(self._outcomes)
        )

    def state(self) -> PoolState:
        """Return the number of workers by state."""
        return self._pool.state()

    def resize(self, workers: int) -> None:
        """Change the number of workers while the pool works. Workers that leave finish their groups first."""
        self._pool.resize(workers)

    async def close(self) -> None:
        """Kill all workers and their judge processes. May be called twice."""
        await self._pool.close()

    async def _verify_repeatedly(self, columns: ColumnsRef, num_tokens: int, with_texts: bool) -> VerifierResult:
        for losses in itertools.count(1):
            try:
                return await self._verify_once(columns, num_tokens, with_texts)
            except RladError as error:
                if decide(event_of_call(error), happened=losses, budget=_MAX_RETRIES) is not Action.RETRY:
                    raise
        raise AssertionError("the policy ends the loop")

    async def _verify_once(self, columns: ColumnsRef, num_tokens: int, with_texts: bool) -> VerifierResult:
        async with self._pool.lease(1) as worker:  # a group occupies one process, regardless of its length
            try:
                async with asyncio.timeout(self._deadline_s):
                    result: VerifierResult = await worker.verify.remote(columns, with_texts)
                return result
            except TimeoutError as error:
                # The worker's own deadlines are all shorter, so it hangs. The pool kills and replaces it.
                raise WorkerLostError(
                    f"it hung: no answer within {self._deadline_s:g} s on a group of {num_tokens} tokens"
                ) from error


class VerifierPool(JudgingPool):
    """Driver's side of the verifier workers. All methods belong to one event loop."""

    def __init__(
        self,
        config: VerifierPoolConfig,
        verifiers: Mapping[str, VerifierConfig],
        *,
        tokenizer_path: str,
        start_timeout_s: float,
        label_selector: dict[str, str] | None = None,
        monitor: HeartbeatMonitor | None = None,
    ) -> None:
        """
        Args:
            config: Size of the pool, and the deadline of one response.
            verifiers: Verifier settings by task.
            tokenizer_path: Model directory whose `tokenizer.json` decodes the responses.
            start_timeout_s: Deadline of the start of a worker, seconds.
            label_selector: Labels of the nodes that workers may run on; any node by default.
            monitor: Ends workers whose process was stopped.
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
                memory_mib=config.memory_mib,
                environment=config.environment,
                tagged=tagged_verifiers(verifiers),
            )

        pool = ActorPool(
            name="verifier",
            size=config.workers,
            spawn=spawn,
            prepare=None,
            max_restarts=config.max_restarts,
            start_timeout_s=start_timeout_s,
            capacity=config.processes_per_worker,
            monitor=monitor,
        )
        deadline_s = _TIMEOUTS_PER_GROUP * config.timeout_s + start_timeout_s
        super().__init__(
            pool,
            processes_per_worker=config.processes_per_worker,
            deadline_s=deadline_s,
            who="a verifier worker",
            max_failed_fraction=config.max_failed_fraction,
        )
