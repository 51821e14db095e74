"""The driver's side of the rollout workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError, TaskCancelledError

from actors.engines.vllm_engine.settings import VllmSettings
from actors.health.monitor import HeartbeatMonitor
from actors.messages import GroupSummary, SampledGroup, SampleRequest, WeightsPublication
from actors.pool.pool import ActorPool, PoolState
from actors.pool.routing import queue_capacity
from actors.pool.speed import SlowWorker, watch_speeds
from actors.rollout.worker import RolloutWorker
from actors.weights.transports import ObjectStoreTransport, WeightTransport, WeightUpdate
from rlad.config import FailureConfig, RolloutConfig
from rlad.contracts import GenerationProgress
from rlad.errors import DeadlineError, EngineError, RladError, WeightsLostError, WeightsMismatchError, WorkerLostError
from rlad.tokenizers.stopping import SamplingTokens

__all__ = ["RolloutPool", "SampleRequest", "SampledGroup", "WorkerStats"]

# Deadline for a worker to abort a group that is past its own deadline. A worker that misses it counts as lost.
_ABORT_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 10.0
_LOST_WEIGHTS_PAUSE_S = 1.0
# Groups queue in the engine, not in front of the actor, so that health checks and weight updates get through.
_MAX_CALLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """Work of one worker since the pool started.

    Attributes:
        worker: Name of the worker.
        busy_s: Seconds during which it had at least one group.
        generated_tokens: Response tokens of its finished groups.
    """

    worker: str
    busy_s: float
    generated_tokens: int


def engine_settings(
    config: RolloutConfig,
    *,
    model_path: str,
    dtype: str,
    seed: int,
    transport: str = "object_store",
    tokens: SamplingTokens = SamplingTokens(),  # noqa: B008  # frozen
) -> VllmSettings:
    """Return the engine settings of rollout workers. The arguments are those of `RolloutPool`."""
    return VllmSettings(
        model_path=model_path,
        dtype=dtype,
        max_sequence_tokens=config.max_prompt_tokens + config.max_response_tokens,
        max_sequences=config.max_sequences,
        seed=seed,
        on_gpu=config.gpus_per_worker > 0,
        tensor_parallel=config.tensor_parallel,
        gpu_memory_fraction=config.gpu_memory_fraction,
        kv_cache_gib=config.kv_cache_gib,
        threads=config.threads,
        weight_transport=transport,
        arguments=config.engine_args,
        stop=tokens.stop,
        vocabulary_size=tokens.vocabulary_size,
    )


class RolloutPool:
    """Rollout workers of a run. All methods belong to the driver's event loop.

    By default strictly on-policy: weights change only while no group is in flight, so all tokens of a group are sampled
    by one policy version.

    Attributes:
        num_slow: Number of workers that were given up because they were slow.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        model_path: str,
        dtype: str,
        seed: int,
        start_timeout_s: float,
        run_id: str,
        label_selector: dict[str, str] | None = None,
        updates_in_flight: bool = False,
        transport: WeightTransport | None = None,
        tokens: SamplingTokens = SamplingTokens(),  # noqa: B008  # frozen
        worker: type = RolloutWorker,
        monitor: HeartbeatMonitor | None = None,
        failures: FailureConfig | None = None,
    ) -> None:
        """
        Args:
            config: Settings of the workers and their engines.
            model_path: Location of the model; its weights are policy version 0.
            dtype: Data type of the engines' weights.
            seed: Seed of the engines' random streams; each worker gets its own.
            start_timeout_s: Deadline of a worker's start and of a weight update, seconds.
            run_id: Name of the run's folder in shared memory: one path component, unique on the machine.
            label_selector: Labels of the nodes that workers may run on; any node by default.
            updates_in_flight: Whether weights may change in the middle of a group. Its later tokens are then sampled by
                the new version.
            transport: How weight updates travel; through the object store by default.
            tokens: Ends of responses, and the number of ids that may be sampled; by default only the model's own
                end-of-sequence tokens end a response, and every id may be sampled.
            worker: Actor class with the methods of `RolloutWorker`.
            monitor: Ends workers whose process, or whose engine's, was stopped.
            failures: Settings by which workers that are much slower than the others are replaced; None replaces none.
        """
        self._config = config
        self._transport = transport or ObjectStoreTransport()
        self._updates_in_flight = updates_in_flight
        self._worker = worker
        self._settings = engine_settings(
            config, model_path=model_path, dtype=dtype, seed=seed, transport=self._transport.name, tokens=tokens
        )
        self._run_id = run_id
        self._label_selector = label_selector or {}
        self._start_timeout_s = start_timeout_s
        self._newest: WeightsPublication | None = None
        self._in_flight = 0
        self._is_updating = False
        self._clocks: dict[str, _Clock] = {}
        self._pool = ActorPool(
            name="rollout",
            size=config.workers,
            spawn=self._spawn,
            prepare=self._prepare,
            max_restarts=config.max_restarts,
            start_timeout_s=start_timeout_s,
            capacity=queue_capacity(config),
            retire=lambda worker: _within(_CLOSE_TIMEOUT_S, worker.close.remote(), "close"),
            monitor=monitor,
            has_engine=True,
        )
        self._failures = failures
        self._watching: asyncio.Task[None] | None = None
        self.num_slow = 0

    async def start(self) -> None:
        """Start all workers.

        Raises:
            PoolExhaustedError, DeadlineError: Some workers did not start; the message names them and the reasons.
        """
        await self._pool.start()
        if self._failures is not None:
            read = partial(self._read_progress, self._failures.heartbeat_s)
            self._watching = watch_speeds(self._failures, read=read, give_up=self._give_up)

    def state(self) -> PoolState:
        """Return the number of workers by state."""
        return self._pool.state()

    def resize(self, workers: int) -> None:
        """Change the number of workers while the pool samples.

        New workers load the newest weights before they get work. Workers that leave finish their groups first.
        """
        self._pool.resize(workers)

    async def sample(self, request: SampleRequest, *, priority: int = 0) -> SampledGroup:
        """Sample one group on the worker with the fewest outstanding tokens.

        Args:
            request: The group to sample.
            priority: If no worker has room, requests with the lowest value are served first.

        Raises:
            DeadlineError: No worker was ready, or the group took longer than `group_timeout_s` and was aborted.
            WorkerLostError: The worker died or hangs. The group may be issued again as its next attempt.
            PoolExhaustedError: No worker is left.
            EngineError: The request does not fit the engine, or a weight update is in progress.
        """
        self._require_fits(request)
        if self._is_updating and not self._updates_in_flight:
            raise EngineError(
                f"{request.uid}: a weight update is in progress; sample after update_weights has returned"
            )
        self._in_flight += 1
        try:
            async with self._pool.lease(request.max_total_tokens, priority=priority) as worker:
                name = self._pool.worker_name(worker)
                clock = self._clocks.setdefault(name, _Clock())
                with clock.running():
                    summary, columns = await self._sample_on(worker, name, request)
                if not self._updates_in_flight and summary.tokens_by_version.keys() != {self._version}:
                    versions = ", ".join(map(str, summary.tokens_by_version))
                    raise WorkerLostError(f"it sampled with policy version {versions}, the newest is {self._version}")
                clock.generated_tokens += summary.num_tokens
        finally:
            self._in_flight -= 1
        return SampledGroup(summary=summary, columns=columns, worker=name)

    async def update_weights(self, publication: WeightsPublication) -> None:
        """Update the weights of every worker.

        A worker that does not report exactly these weights is removed and replaced. Replacements load them before they
        get work.

        Raises:
            EngineError: Groups are in flight, which this pool does not allow, or another update is in progress.
            WeightsLostError: The published weights ended with the learner process. Update again when it has restarted.
            PoolExhaustedError: No worker is left.
        """
        if (self._in_flight and not self._updates_in_flight) or self._is_updating:
            raise EngineError(
                f"cannot update weights to version {publication.manifest.version}: "
                f"{self._in_flight} groups are in flight"
            )
        self._is_updating = True
        self._newest = publication
        try:
            # No await between these two lines: the receiving workers are exactly the awaited ones.
            update = self._transport.start_update(publication, self._pool.workers())
            await self._pool.for_each(lambda worker: self._update_or_lose(worker, publication, update))
        finally:
            self._is_updating = False

    @property
    def _version(self) -> int:
        return self._newest.manifest.version if self._newest else 0

    def stats(self) -> tuple[WorkerStats, ...]:
        """Return the work of every worker that has had a group, lost workers included."""
        return tuple(
            WorkerStats(worker=name, busy_s=clock.busy_s, generated_tokens=clock.generated_tokens)
            for name, clock in self._clocks.items()
        )

    async def close(self) -> None:
        """Shut down all workers. May be called twice, and after a failed start."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching}, timeout=_CLOSE_TIMEOUT_S)
        # A worker that does not close is killed next. Its folder is removed when another run starts on the node.
        with suppress(RladError):
            await self._pool.for_each(lambda worker: _within(_CLOSE_TIMEOUT_S, worker.close.remote(), "close"))
        await self._pool.close()

    def _spawn(self, number: int) -> ActorHandle:
        config = self._config
        resources = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker}
        # Engines with equal seeds would draw equal numbers.
        settings = replace(self._settings, seed=self._settings.seed + number)
        worker = ray.remote(self._worker).options(
            **resources, max_concurrency=_MAX_CALLS, label_selector=self._label_selector
        )
        return worker.remote(settings, self._run_id)

    async def _prepare(self, worker: ActorHandle) -> None:
        """Start a worker's engine and load the newest weights, again if newer ones were published meanwhile."""
        await worker.start.remote()  # unlimited wait: the pool's deadline of a start applies
        given: WeightsPublication | None = None
        while (newest := self._newest) is not None and newest is not given:
            try:
                await _update_worker(
                    worker, newest, self._transport.start_update(newest, {self._pool.worker_name(worker): worker})
                )
            except WeightsLostError:
                await asyncio.sleep(_LOST_WEIGHTS_PAUSE_S)  # until the restarted learner publishes again
                continue
            except WeightsMismatchError:
                if newest is self._newest:
                    raise
            given = newest

    async def _update_or_lose(self, worker: ActorHandle, publication: WeightsPublication, update: WeightUpdate) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await _update_worker(worker, publication, update)
        except (WeightsMismatchError, TimeoutError) as error:
            what = f"loading the weights of version {publication.manifest.version}"
            reason = (
                f"{what} took longer than {self._start_timeout_s:g} s"
                if isinstance(error, TimeoutError)
                else f"{what}: {error}"
            )
            raise WorkerLostError(reason) from error

    async def _read_progress(self, timeout_s: float) -> dict[str, GenerationProgress | None]:
        """Return the progress of every ready worker; None of one that did not answer in time."""

        async def ask(worker: ActorHandle) -> tuple[str, GenerationProgress | None]:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    return self._pool.worker_name(worker), await worker.progress.remote()
            return self._pool.worker_name(worker), None

        return dict(await self._pool.for_each(ask))

    def _give_up(self, slow: SlowWorker) -> None:
        if slow.name in self._pool.workers():  # it may have been lost meanwhile
            self.num_slow += 1
            self._pool.give_up(slow.name, slow.reason)

    async def _sample_on(
        self, worker: ActorHandle, name: str, request: SampleRequest
    ) -> tuple[GroupSummary, ObjectRef]:
        timeout_s = self._config.group_timeout_s
        summary_ref, columns = worker.sample.remote(request)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return await summary_ref, columns
        except BaseException as error:
            # Both objects carry the same error. Retrieve it here too, or Ray prints it as unhandled.
            columns.future().add_done_callback(lambda future: future.cancelled() or future.exception())
            if isinstance(error, asyncio.CancelledError):
                ray.cancel(summary_ref)
            if not isinstance(error, TimeoutError) or not deadline.expired():
                raise
            await self._abort(worker, summary_ref)
            raise DeadlineError(
                f"{request.uid} attempt {request.attempt}: {name} did not finish the group within {timeout_s:g} s"
            ) from error

    async def _abort(self, worker: ActorHandle, summary_ref: ObjectRef) -> None:
        """Abort a group in its engine. A worker that cannot do so hangs and would lose every further group."""
        ray.cancel(summary_ref)
        with suppress(TaskCancelledError, RayTaskError):
            await _within(_ABORT_TIMEOUT_S, summary_ref, "abort a group")
        await _within(_ABORT_TIMEOUT_S, worker.version.remote(), "report its policy version")

    def _require_fits(self, request: SampleRequest) -> None:
        prompt_tokens, limit = len(request.prompt_ids), self._settings.max_sequence_tokens
        if prompt_tokens + request.max_response_tokens > limit:
            raise EngineError(
                f"{request.uid}: a prompt of {prompt_tokens} tokens with up to {request.max_response_tokens} response "
                f"tokens exceeds the engines' limit of {limit} tokens: raise rollout.max_prompt_tokens or "
                "rollout.max_response_tokens"
            )


@dataclass(slots=True)
class _Clock:
    """Generated tokens of a worker, and the time during which it had at least one group."""

    generated_tokens: int = 0
    _finished_s: float = 0.0
    _running: int = 0
    _since: float = field(default_factory=time.monotonic)

    @property
    def busy_s(self) -> float:
        return self._finished_s + (time.monotonic() - self._since if self._running else 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._running == 0:
            self._since = time.monotonic()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._finished_s += time.monotonic() - self._since


async def _update_worker(worker: ActorHandle, publication: WeightsPublication, update: WeightUpdate) -> None:
    reported = await update(worker)
    if reported != publication.manifest:
        raise WeightsMismatchError(f"expected a worker to report {publication.manifest}, got {reported}")


async def _within(timeout_s: float, answer: ObjectRef, what: str) -> Any:
    """Await a worker's answer. A worker that does not answer in time counts as lost."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError as error:
        raise WorkerLostError(f"it did not {what} within {timeout_s:g} s") from error
