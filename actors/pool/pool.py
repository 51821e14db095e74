"""Elastic pool of equal Ray actors: routing, health, replacement, growing and shrinking.

A pool belongs to the driver's event loop and owns the actor handles. An actor becomes *ready* once it is up and
prepared; only ready actors get work. An actor that dies or becomes unreachable is removed at once and replaced in the
background while the restart budget lasts; its callers get `WorkerLostError` and may submit the work again. The same
happens to a worker whose process was stopped, and to one that is given up for its speed. When a pool shrinks, surplus
workers drain: they finish their leases before they are killed.

Worker states are in `actors.pool.workers`, the rules for replacement in `rlad.failures`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar

from ray.actor import ActorHandle
from ray.exceptions import NodeDiedError, RayActorError, RayTaskError

from actors.health.monitor import HeartbeatMonitor
from actors.pool.routing import Router
from actors.pool.workers import PoolState, Scalable, Worker, WorkerSet, WorkerState
from actors.remote_errors import as_rlad_error, reason_of
from rlad.errors import DeadlineError, PoolExhaustedError, RladError, WorkerLostError
from rlad.failures import Action, Event, decide_for_pool

logger = logging.getLogger(__name__)

__all__ = ["ActorPool", "PoolState", "Scalable"]

T = TypeVar("T")

# Errors after which an actor is given up. An actor raises `WorkerLostError` itself when it lost something that it
# needs, for example its engine process.
_LOST = (RayActorError, NodeDiedError, WorkerLostError)

_LOSS_EVENTS = {
    WorkerState.READY: Event.WORKER_LOST,
    WorkerState.DRAINING: Event.DRAINING_WORKER_LOST,
}


class ActorPool:
    """Pool of actors of one kind. All methods must be called from one event loop."""

    def __init__(
        self,
        *,
        name: str,
        size: int,
        spawn: Callable[[int], ActorHandle],
        prepare: Callable[[ActorHandle], Awaitable[None]] | None,
        max_restarts: int,
        start_timeout_s: float,
        retire: Callable[[ActorHandle], Awaitable[None]] | None = None,
        capacity: int | None = None,
        monitor: HeartbeatMonitor | None = None,
        has_engine: bool = False,
    ) -> None:
        """
        Args:
            name: Name of the pool. Its workers are `name-0`, `name-1`, ... in logs and errors.
            size: Number of workers.
            spawn: Creates an actor without waiting for it. Its argument is a number that is never reused.
            prepare: Prepares an actor before it becomes ready; None waits only until the actor is up. Its result must
                still hold after its last await: the pool marks the actor ready without yielding to other tasks.
            max_restarts: Number of replacements over the life of the pool.
            start_timeout_s: Deadline for the start and preparation of one actor, and for a lease while no worker is
                ready.
            retire: Runs on a healthy actor before it is killed because the pool shrinks. Must end within a deadline of
                its own.
            capacity: Cost up to which an actor gets more work, see `Router`. None never queues work in the pool.
            monitor: Ends workers whose process was stopped. Without it, only their deadlines do.
            has_engine: Whether the child processes of an actor are an engine, without which it cannot work.
        """
        self._name = name
        self._target = size
        self._spawn = spawn
        self._prepare = prepare or _wait_until_up
        self._retire = retire
        self._start_timeout_s = start_timeout_s
        self._restarts_left = max_restarts
        self._workers = WorkerSet()
        self._numbers = itertools.count()
        self._names: dict[ActorHandle, str] = {}
        self._monitor, self._has_engine = monitor, has_engine
        self._router = Router(capacity=capacity)
        self._last_failure: BaseException | None = None
        self._closed = False

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            DeadlineError: A worker was not ready in time.
            PoolExhaustedError: A worker failed to start or to prepare. The message names each one and its reason. All
                actors are killed.
        """
        size = self._target
        tasks = [self._start_worker(event_on_failure=None) for _ in range(size)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if self._closed:
            raise self._closed_error()
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not failures or self._workers.num_active >= self._target:  # a resize may have cancelled surplus starts
            return
        await self.close()
        for failure in failures:
            if not isinstance(failure, Exception):
                raise failure
        kind = DeadlineError if all(isinstance(failure, DeadlineError) for failure in failures) else PoolExhaustedError
        reasons = "; ".join(str(failure) for failure in failures)
        raise kind(
            f"the {self._name} pool did not start, {len(failures)} of {size} workers failed: {reasons}"
        ) from failures[0]

    def state(self) -> PoolState:
        """Return the number of workers by state."""
        return self._workers.state(target=self._target)

    def resize(self, size: int) -> None:
        """Grow or shrink to `size` workers, at least 1. Returns at once; work continues meanwhile.

        New workers take work once they are prepared. A new worker that cannot start is not tried again, and the target
        falls by one. Shrinking first cancels workers that are still starting, then drains those with the least
        outstanding cost.
        """
        if self._closed:
            return
        logger.info("pool=%s state=resized from=%d to=%d", self._name, self._target, size)
        self._target = size
        ready, starting = self._workers.in_state(WorkerState.READY), self._workers.in_state(WorkerState.STARTING)
        for _ in range(size - len(ready) - len(starting)):
            self._start_worker(event_on_failure=Event.GROWTH_FAILED)
        surplus = max(0, len(ready) + len(starting) - size)
        cancelled = starting[::-1][:surplus]
        for worker in cancelled:
            self._cancel_start(worker)
        by_cost = sorted(ready, key=lambda worker: self._router.outstanding(worker.name))
        for worker in by_cost[: surplus - len(cancelled)]:
            self._drain(worker)

    @asynccontextmanager
    async def lease(self, cost: int, *, priority: int = 0) -> AsyncIterator[ActorHandle]:
        """Lease the ready worker with the least outstanding cost for the length of the block.

        Waits for a worker with room.

        Args:
            cost: Cost of the work, in the unit of the pool's capacity (tokens, responses).
            priority: Callers that wait are served by the lowest priority first, then in order of arrival.

        Raises:
            WorkerLostError: The worker died or became unreachable during the block. The pool replaces it.
            PoolExhaustedError: No worker is left and none may be started.
            DeadlineError: No worker was ready within `start_timeout_s`.
            RladError: The actor raised it. Any other error of the actor becomes an `EngineError`.
        """
        worker = await self._route(cost, priority)
        try:
            with self._use(worker) as actor:
                yield actor
        finally:
            self._router.release(worker.name, cost)

    async def for_each(self, call: Callable[[ActorHandle], Awaitable[T]]) -> list[T]:
        """Call all ready workers concurrently and return their results.

        A worker that is lost meanwhile is replaced and has no result.

        Args:
            call: Must end within a deadline of its own. Raising `WorkerLostError` gives the worker up.

        Raises:
            PoolExhaustedError: Every worker was lost and none may be started.
            Exception: The first other error that a call raised, after all calls have ended.
        """

        async def call_one(worker: Worker) -> T:
            with self._use(worker) as actor:  # counts as a lease: draining waits for this call
                return await call(actor)

        ready = self._workers.in_state(WorkerState.READY)
        outcomes = await asyncio.gather(*(call_one(worker) for worker in ready), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, WorkerLostError):
                raise outcome
        self._raise_if_exhausted()
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    def workers(self) -> dict[str, ActorHandle]:
        """Return the ready workers by name."""
        return {
            worker.name: worker.actor
            for worker in self._workers.in_state(WorkerState.READY)
            if worker.actor is not None
        }

    def worker_name(self, actor: ActorHandle) -> str:
        """Return the name of an actor in logs and errors."""
        return self._names[actor]

    async def close(self) -> None:
        """Kill all actors and cancel all starts. May be called twice."""
        self._closed = True
        tasks = [worker.task for worker in self._workers if worker.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._workers:
            self._stop(worker)
        self._router.fail(self._closed_error())

    async def _route(self, cost: int, priority: int) -> Worker:
        while True:
            self._raise_if_exhausted()
            chosen = self._router.enqueue(cost, priority=priority)
            try:
                if not chosen.done():
                    await self._wait_for(chosen)
            except BaseException:
                if chosen.done() and not chosen.cancelled() and chosen.exception() is None:
                    self._router.release(chosen.result(), cost)
                chosen.cancel()
                raise
            worker = self._workers.get(chosen.result())
            # The worker may have been lost or drained since the router chose it.
            if worker is not None and worker.state is WorkerState.READY:
                return worker

    async def _wait_for(self, chosen: asyncio.Future[str]) -> None:
        """Wait without limit for a worker with room, but only `start_timeout_s` while no worker is ready."""
        while not chosen.done():
            had_none = self._workers.count(WorkerState.READY) == 0
            await asyncio.wait({chosen}, timeout=self._start_timeout_s)
            if not chosen.done() and had_none and self._workers.count(WorkerState.READY) == 0:
                raise DeadlineError(
                    f"no {self._name} worker was ready within {self._start_timeout_s:g} s: "
                    "a replacement is still starting"
                )
        chosen.result()

    @contextmanager
    def _use(self, worker: Worker) -> Iterator[ActorHandle]:
        """Count a lease, detect the loss of the worker, and convert remote errors to the project's errors."""
        worker.leases += 1
        try:
            yield worker.actor
        except _LOST as error:
            self._lose(worker, error)
            raise WorkerLostError(f"{worker.name} was lost: {reason_of(error)}") from error
        except RayTaskError as error:
            raise as_rlad_error(error, who=worker.name) from error
        finally:
            worker.leases -= 1
            if worker.state is WorkerState.DRAINING:
                self._retire_if_drained(worker)

    def _raise_if_exhausted(self) -> None:
        if self._closed:
            raise self._closed_error()
        if not self._workers.num_active:
            raise self._exhausted_error()

    def _closed_error(self) -> PoolExhaustedError:
        return PoolExhaustedError(f"the {self._name} pool is closed")

    def _exhausted_error(self) -> PoolExhaustedError:
        reason = "" if self._last_failure is None else f"; last failure: {reason_of(self._last_failure)}"
        return PoolExhaustedError(f"no {self._name} worker is left and the restart budget is spent{reason}")

    def give_up(self, name: str, reason: str) -> None:
        """Replace a ready worker that answers its calls, but is too slow. Its callers get `WorkerLostError`."""
        worker = self._workers.get(name)
        if worker is not None and worker.state is WorkerState.READY:
            self._lose(worker, WorkerLostError(reason))

    def _lose(self, worker: Worker, error: Exception) -> None:
        """Give up a worker that failed its caller. Only the first of several callers has an effect."""
        event = _LOSS_EVENTS.get(worker.state)
        if event is None:
            return
        self._workers.move(worker, WorkerState.LOST)
        self._router.remove(worker.name)
        worker.kill(lost=True)  # an actor that was only unreachable must not serve again next to its replacement
        self._last_failure = error
        self._log_loss(worker, "lost", reason_of(error))
        self._act_on(event)

    def _log_loss(self, worker: Worker, state: str, reason: str) -> None:
        message = "pool=%s worker=%s state=%s restarts_left=%d reason=%s"
        logger.warning(message, self._name, worker.name, state, self._restarts_left, reason)

    def _act_on(self, event: Event) -> None:
        """Apply the decision of the failure policy."""
        if self._closed:
            return
        decision = decide_for_pool(
            event,
            ready=self._workers.count(WorkerState.READY),
            starting=self._workers.count(WorkerState.STARTING),
            target=self._target,
            restarts_left=self._restarts_left,
        )
        self._target, self._restarts_left = decision.target, decision.restarts_left
        if decision.action is Action.REPLACE:
            self._start_worker(event_on_failure=Event.REPLACEMENT_FAILED)
        elif decision.action is Action.END:
            self._router.fail(self._exhausted_error())
        elif event is Event.GROWTH_FAILED:
            logger.warning("pool=%s state=could_not_grow target=%d", self._name, self._target)

    def _start_worker(self, *, event_on_failure: Event | None) -> asyncio.Task[None]:
        """Start one worker in the background.

        Args:
            event_on_failure: Event for the failure policy when the worker does not start; None leaves the failure to
                the caller.
        """
        number = next(self._numbers)
        worker = Worker(name=f"{self._name}-{number}", number=number, monitor=self._monitor)
        self._workers.add(worker)
        worker.task = asyncio.create_task(self._bring_up(worker))
        # A callback, since a task that is cancelled before its first step runs none of its own code.
        worker.task.add_done_callback(partial(self._start_ended, worker, event_on_failure))
        return worker.task

    async def _bring_up(self, worker: Worker) -> None:
        """Spawn and prepare an actor, then mark its worker ready. `_start_ended` kills the actor of a failed start."""
        deadline = asyncio.timeout(self._start_timeout_s)
        try:
            async with deadline:
                worker.actor = self._spawn(worker.number)
                self._names[worker.actor] = worker.name
                await worker.watch(self._name, self._start_timeout_s, self._has_engine, partial(self._lose, worker))
                await self._prepare(worker.actor)
        except Exception as error:
            if deadline.expired():
                raise DeadlineError(f"{worker.name} was not ready within {self._start_timeout_s:g} s") from error
            raise PoolExhaustedError(f"{worker.name} did not start: {reason_of(error)}") from error
        # No await after the preparation: the state that it established (for example the newest weights) still holds.
        self._workers.move(worker, WorkerState.READY)
        self._router.admit(worker.name)
        logger.info("pool=%s worker=%s state=ready", self._name, worker.name)

    def _start_ended(self, worker: Worker, event_on_failure: Event | None, task: asyncio.Task[None]) -> None:
        """Record a start that failed or was cancelled, and let the failure policy decide."""
        if task.cancelled() or worker.state is WorkerState.CANCELLED:
            self._stop(worker)
            self._act_on(Event.START_CANCELLED)
            return
        error = task.exception()
        if error is None:
            return
        self._workers.move(worker, WorkerState.LOST)
        worker.kill(lost=True)
        if event_on_failure is not None:
            self._last_failure = error
            self._log_loss(worker, "start_failed", str(error))
            self._act_on(event_on_failure)

    def _cancel_start(self, worker: Worker) -> None:
        self._workers.move(worker, WorkerState.CANCELLED)
        if worker.task is not None:
            worker.task.cancel()

    def _drain(self, worker: Worker) -> None:
        self._workers.move(worker, WorkerState.DRAINING)
        self._router.remove(worker.name)
        self._retire_if_drained(worker)

    def _retire_if_drained(self, worker: Worker) -> None:
        """Retire a draining worker if its last lease has ended."""
        if worker.leases == 0 and not self._closed:
            self._workers.move(worker, WorkerState.RETIRING)
            worker.task = asyncio.create_task(self._run_retire(worker))
            worker.task.add_done_callback(lambda _: self._stop(worker))

    async def _run_retire(self, worker: Worker) -> None:
        if self._retire is None or worker.actor is None:
            return
        try:
            await self._retire(worker.actor)
        except (*_LOST, RladError, RayTaskError) as error:
            logger.warning("pool=%s worker=%s state=retire_failed reason=%s", self._name, worker.name, reason_of(error))

    def _stop(self, worker: Worker) -> None:
        self._workers.move(worker, WorkerState.STOPPED)
        worker.kill(lost=False)
        logger.info("pool=%s worker=%s state=stopped", self._name, worker.name)


async def _wait_until_up(actor: ActorHandle) -> None:
    await actor.__ray_ready__.remote()  # unlimited wait: the pool's deadline of a start applies
