"""The pool of rollout workers, as the driver sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError, TaskCancelledError

from actors.engines.vllm_engine.settings import VllmSettings
from actors.messages import GroupSummary, SampledGroup, SampleRequest, WeightsPublication
from actors.pool.pool import ActorPool, PoolState
from actors.pool.routing import queue_capacity
from actors.rollout.worker import RolloutWorker
from actors.weights.transports import ObjectStoreTransport, WeightTransport, WeightUpdate
from rlad.config import RolloutConfig
from rlad.errors import DeadlineError, EngineError, RladError, WeightsMismatchError, WorkerLostError

__all__ = ["RolloutPool", "SampleRequest", "SampledGroup", "WorkerStats"]

# How long a worker may take to give up a group that is past its deadline, before it counts as lost; and to leave when the pool closes.
_ABORT_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 10.0
# Groups wait in the engine, not in front of the actor: calls that ask for its health or change its weights must get through.
_MAX_CALLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """What a worker has done since the pool started.

    Attributes:
        busy_s: seconds in which it had at least one group.
        generated_tokens: of the groups it finished.
    """

    worker: str
    busy_s: float
    generated_tokens: int


class RolloutPool:
    """The rollout workers of a run. Lives in the driver's event loop.

    Strictly on-policy unless told otherwise: weights change only while no group is in flight, so all tokens of a group are of one version.
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
        worker: type = RolloutWorker,
    ) -> None:
        """
        Args:
            config: of the workers and their engines.
            model_path: Hugging Face model directory, whose weights are version 0.
            dtype: of the engines' weights.
            seed: of the engines' own random streams; each worker's differs.
            start_timeout_s: deadline of a worker's start, and of a weight update.
            run_id: names the run's folder in shared memory: one path component, the same in no two runs of a machine.
            label_selector: of the nodes that the workers may run on; any by default.
            updates_in_flight: weights may change in the middle of a group, whose further tokens are then of the new ones.
            transport: of new weights; by default the object store.
            worker: class of the actors, with the methods of `RolloutWorker`.
        """
        self._config = config
        self._transport = transport or ObjectStoreTransport()
        self._updates_in_flight = updates_in_flight
        self._worker = worker
        self._settings = VllmSettings(
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
            weight_transport=self._transport.name,
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
        )

    async def start(self) -> None:
        """Start all workers.

        Raises:
            PoolExhaustedError, DeadlineError: which workers did not start, and why.
        """
        await self._pool.start()

    def state(self) -> PoolState:
        return self._pool.state()

    def resize(self, workers: int) -> None:
        """Grow or shrink the pool while it samples. New workers load the newest weights before they are given work; those that go finish their groups."""
        self._pool.resize(workers)

    async def sample(self, request: SampleRequest, *, priority: int = 0) -> SampledGroup:
        """Sample one group on the worker with the fewest outstanding tokens. Waits for one with room, of those who wait with the lowest priority first.

        Raises:
            DeadlineError: no worker was ready, or the group took longer than `group_timeout_s` and was taken out of its engine.
            WorkerLostError: its worker died, or hangs. The group may be issued again, with the next attempt.
            PoolExhaustedError: no worker is left.
            EngineError: the request does not fit the engine, or weights are being updated.
        """
        self._require_fits(request)
        if self._is_updating and not self._updates_in_flight:
            raise EngineError(f"{request.uid}: weights are being updated; sample after update_weights has returned")
        queued = time.monotonic()
        self._in_flight += 1
        try:
            async with self._pool.lease(request.num_tokens_at_most, priority=priority) as worker:
                name = self._pool.worker_name(worker)
                queued_s = time.monotonic() - queued
                clock = self._clocks.setdefault(name, _Clock())
                with clock.running():
                    summary, group_ref = await self._sample_on(worker, name, request)
                if not self._updates_in_flight and summary.tokens_by_version.keys() != {self._version}:
                    versions = ", ".join(map(str, summary.tokens_by_version))
                    raise WorkerLostError(
                        f"it sampled with weights of version {versions}, the newest are {self._version}"
                    )
                clock.generated_tokens += sum(summary.response_lengths)
        finally:
            self._in_flight -= 1
        return SampledGroup(
            uid=request.uid,
            attempt=request.attempt,
            group_ref=group_ref,
            response_lengths=summary.response_lengths,
            is_truncated=summary.is_truncated,
            prompt_tokens=len(request.prompt_ids),
            tokens_by_version=summary.tokens_by_version,
            worker=name,
            queued_s=queued_s,
            elapsed_s=summary.elapsed_s,
        )

    async def update_weights(self, publication: WeightsPublication) -> None:
        """Give every worker new weights. A worker that does not report exactly them is removed and replaced; replacements get them before they serve.

        Raises:
            EngineError: groups are in flight, which this pool does not allow, or another update is.
            PoolExhaustedError: no worker is left.
        """
        if (self._in_flight and not self._updates_in_flight) or self._is_updating:
            raise EngineError(
                f"cannot update weights to version {publication.manifest.version}: {self._in_flight} groups are in flight"
            )
        self._is_updating = True
        self._newest = publication
        try:
            # Nothing happens between the two: whom the weights are sent to is whom they are waited for.
            update = self._transport.start_update(publication, self._pool.workers())
            await self._pool.for_each(lambda worker: self._give_weights(worker, publication, update))
        finally:
            self._is_updating = False

    @property
    def _version(self) -> int:
        return self._newest.manifest.version if self._newest else 0

    def stats(self) -> tuple[WorkerStats, ...]:
        """Of every worker that has had a group, lost ones included."""
        return tuple(
            WorkerStats(worker=name, busy_s=clock.busy_s, generated_tokens=clock.generated_tokens)
            for name, clock in self._clocks.items()
        )

    async def close(self) -> None:
        """End all workers. May be called twice, and after a failed start."""
        with suppress(
            RladError
        ):  # a worker that does not leave is killed next; its folder goes when another run starts on the node
            await self._pool.for_each(lambda worker: _within(_CLOSE_TIMEOUT_S, worker.close.remote(), "close"))
        await self._pool.close()

    def _spawn(self, number: int) -> ActorHandle:
        config = self._config
        resources = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker}
        # Two engines with one seed would draw the same numbers.
        settings = replace(self._settings, seed=self._settings.seed + number)
        worker = ray.remote(self._worker).options(
            **resources, max_concurrency=_MAX_CALLS, label_selector=self._label_selector
        )
        return worker.remote(settings, self._run_id)

    async def _prepare(self, worker: ActorHandle) -> None:
        """Start a worker's engine and load the newest weights, which may be overtaken by newer ones meanwhile."""
        await worker.start.remote()
        given: WeightsPublication | None = None
        while (newest := self._newest) is not None and newest is not given:
            try:
                await _update_worker(
                    worker, newest, self._transport.start_update(newest, {self._pool.worker_name(worker): worker})
                )
            except WeightsMismatchError:
                if newest is self._newest:
                    raise
            given = newest

    async def _give_weights(self, worker: ActorHandle, publication: WeightsPublication, update: WeightUpdate) -> None:
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

    async def _sample_on(
        self, worker: ActorHandle, name: str, request: SampleRequest
    ) -> tuple[GroupSummary, ObjectRef]:
        timeout_s = self._config.group_timeout_s
        summary_ref, group_ref = worker.sample.remote(request)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return await summary_ref, group_ref
        except BaseException as error:
            # Both parts fail alike. Ray would print the error of the one that nobody looks at.
            group_ref.future().add_done_callback(lambda part: part.cancelled() or part.exception())
            if isinstance(error, asyncio.CancelledError):
                ray.cancel(summary_ref)
            if not isinstance(error, TimeoutError) or not deadline.expired():
                raise
            await self._take_out(worker, summary_ref)
            raise DeadlineError(
                f"{request.uid} attempt {request.attempt}: {name} did not finish the group within {timeout_s:g} s"
            ) from error

    async def _take_out(self, worker: ActorHandle, summary_ref: ObjectRef) -> None:
        """Take a group out of its engine. A worker that cannot do that hangs, and would swallow every group it is given."""
        ray.cancel(summary_ref)
        with suppress(TaskCancelledError, RayTaskError):
            await _within(_ABORT_TIMEOUT_S, summary_ref, "give up a group")
        await _within(_ABORT_TIMEOUT_S, worker.version.remote(), "say which weights it has")

    def _require_fits(self, request: SampleRequest) -> None:
        tokens, room = len(request.prompt_ids) + request.max_response_tokens, self._settings.max_sequence_tokens
        if tokens > room:
            raise EngineError(
                f"{request.uid}: a prompt of {len(request.prompt_ids)} tokens with up to {request.max_response_tokens} response tokens does not fit the "
                f"engines' {room}: raise rollout.max_prompt_tokens or rollout.max_response_tokens"
            )


@dataclass(slots=True)
class _Clock:
    """Tokens of a worker, and the time in which it had at least one group."""

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
        raise WeightsMismatchError(f"a worker reports {reported}, it was sent {publication.manifest}")


async def _within(timeout_s: float, answer: ObjectRef, what: str) -> Any:
    """Await a worker's answer; without one in time it counts as lost."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError as error:
        raise WorkerLostError(f"it did not {what} within {timeout_s:g} s") from error
