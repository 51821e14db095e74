"""An elastic set of equal actors: routing, health, replacement, growing and shrinking.

A pool lives in the driver's event loop and owns the handles. An actor is *admitted* once it is up and prepared; only admitted actors get work. One that
dies, or becomes unreachable, is removed at once and replaced in the background while the restart budget lasts; whoever had work on it gets
`WorkerLostError` and may issue the work again. A pool that shrinks lets the workers that go finish what they have.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import NodeDiedError, RayActorError, RayTaskError

from actors.pool.routing import Router
from actors.remote_errors import as_rlad_error
from rlad.errors import DeadlineError, PoolExhaustedError, RladError, WorkerLostError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What says that an actor cannot go on. `WorkerLostError` comes from an actor that lost something it cannot live without, such as its engine's process.
_LOST = (RayActorError, NodeDiedError, WorkerLostError)

# Of Ray's last line: what comes after is a list of common causes.
_REASON_CHARS = 220


@dataclass(slots=True)
class RestartBudget:
    """How many workers may still be replaced."""

    left: int

    def take(self) -> bool:
        """Whether one more replacement is allowed; if so it is counted."""
        if self.left <= 0:
            return False
        self.left -= 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """Workers of a pool.

    Attributes:
        target: wanted.
        ready: admitted.
        starting: on their way there.
        draining: finishing what they have, then they go.
    """

    target: int
    ready: int
    starting: int
    draining: int


class Scalable(Protocol):
    """A pool whose size may change while it works."""

    def state(self) -> PoolState: ...

    def resize(self, size: int, /) -> None:
        """Change the wanted number of workers, at least 1. Returns at once."""


@dataclass(slots=True, eq=False)
class _Replica:
    name: str
    actor: ActorHandle
    leases: int = 0


class ActorPool:
    """A set of actors of one kind. All methods belong to one event loop."""

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
    ) -> None:
        """
        Args:
            name: of the pool; its workers are `name-0`, `name-1`, ... in logs and errors.
            size: number of workers.
            spawn: creates an actor (with whatever Ray options it needs) without waiting for it. The number it gets is never used twice.
            prepare: what an actor must go through before it is admitted; without it, being up is enough. After its last await it must be true
                that the actor may serve: the pool admits it without giving way to other tasks.
            max_restarts: replacements over the pool's life.
            start_timeout_s: deadline of one actor's start and preparation, and of waiting for an admitted one.
            retire: what a healthy actor must go through before it is killed because the pool shrinks; must end by itself within a deadline.
            capacity: cost up to which an actor is given more work, as `Router` says; without it work never waits in the pool.
        """
        self._name = name
        self._size = size
        self._spawn = spawn
        self._prepare = prepare or _up
        self._start_timeout_s = start_timeout_s
        self._budget = RestartBudget(max_restarts)
        self._admitted: dict[str, _Replica] = {}
        self._draining: dict[str, _Replica] = {}
        self._retire = retire
        self._retiring: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._names: dict[ActorHandle, str] = {}
        self._replacing: set[asyncio.Task[None]] = set()
        self._router = Router(capacity=capacity)
        self._last_failure: Exception | None = None
        self._closed = False

    async def start(self) -> None:
        """SubmitGroup up all workers.

        Raises:
            DeadlineError: a worker was not ready in time.
            PoolExhaustedError: a worker failed to start or to prepare; the message names each and why. Nothing is left running.
        """
        outcomes = await asyncio.gather(*(self._bring_up() for _ in range(self._size)), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not failures:
            return
        await self.close()
        for failure in failures:
            if not isinstance(failure, Exception):
                raise failure
        kind = DeadlineError if all(isinstance(failure, DeadlineError) for failure in failures) else PoolExhaustedError
        reasons = "; ".join(str(failure) for failure in failures)
        raise kind(
            f"the {self._name} pool did not start, {len(failures)} of {self._size} workers failed: {reasons}"
        ) from failures[0]

    def state(self) -> PoolState:
        return PoolState(
            target=self._size, ready=len(self._admitted), starting=len(self._replacing), draining=len(self._draining)
        )

    def resize(self, size: int) -> None:
        """Grow or shrink to `size` workers, at least 1, while work goes on. Returns at once.

        New workers are admitted when they are up and prepared; one that cannot start is given up, and the pool goes on with what there is. Of those
        that go, workers that are still starting come first, then those with the least outstanding cost; they get no further work and end with their last.
        """
        logger.info("pool=%s state=resized from=%d to=%d", self._name, self._size, size)
        self._size = size
        starting = [task for task in self._replacing if not task.cancelling()]
        surplus = len(self._admitted) + len(starting) - size
        for _ in range(-surplus):
            self._start_in_background(self._grow())
        for task in starting[: max(0, surplus)]:
            task.cancel()
            surplus -= 1
        for replica in sorted(self._admitted.values(), key=lambda each: self._router.outstanding(each.name))[
            : max(0, surplus)
        ]:
            self._router.remove(replica.name)
            self._draining[replica.name] = self._admitted.pop(replica.name)
            self._end_if_drained(replica)

    @asynccontextmanager
    async def lease(self, cost: int, *, priority: int = 0) -> AsyncIterator[ActorHandle]:
        """An admitted worker for the length of the block, the one with the least outstanding cost. Waits for one that has room.

        Args:
            cost: of the work to come, in the pool's own unit (tokens, responses).
            priority: of those who wait the lowest is served first, and of equals who came first.

        Raises:
            WorkerLostError: the worker died or became unreachable during the block. It is being replaced.
            PoolExhaustedError: no worker is left and none may be started.
            DeadlineError: no worker was admitted within `start_timeout_s`.
            RladError: what the actor raised: one of ours as itself, anything else as EngineError.
        """
        replica = await self._route(cost, priority)
        replica.leases += 1
        try:
            with self._watch(replica):
                yield replica.actor
        finally:
            self._router.release(replica.name, cost)
            replica.leases -= 1
            self._end_if_drained(replica)

    async def for_each(self, call: Callable[[ActorHandle], Awaitable[T]]) -> list[T]:
        """Call every worker that is admitted now, all at once. One that is lost meanwhile is left out of the results and replaced.

        Args:
            call: must end by itself within a deadline; raising `WorkerLostError` gives the worker up.

        Raises:
            PoolExhaustedError: every worker was lost and none may be started.
            Exception: the first other error that a call raised, after all calls ended.
        """
        outcomes = await asyncio.gather(
            *(self._watched(replica, call) for replica in self._admitted.values()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, WorkerLostError):
                raise outcome
        self._raise_if_exhausted()
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    def workers(self) -> dict[str, ActorHandle]:
        """The workers that are admitted now, by name."""
        return {name: replica.actor for name, replica in self._admitted.items()}

    def worker_name(self, actor: ActorHandle) -> str:
        """What logs and errors call this actor."""
        return self._names[actor]

    async def close(self) -> None:
        """Kill all actors, and give up on those that are starting. May be called twice."""
        self._closed = True
        background = [*self._replacing, *self._retiring]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for replica in (*self._admitted.values(), *self._draining.values()):
            ray.kill(replica.actor)
        self._admitted.clear()
        self._draining.clear()
        self._router.fail(PoolExhaustedError(f"the {self._name} pool is closed"))

    async def _route(self, cost: int, priority: int) -> _Replica:
        while True:
            self._raise_if_exhausted()
            given = self._router.enqueue(cost, priority=priority)
            try:
                await self._wait_for(given)
            except BaseException:
                if given.done() and not given.cancelled() and given.exception() is None:
                    self._router.release(given.result(), cost)
                given.cancel()
                raise
            replica = self._admitted.get(given.result())
            if replica is not None:  # else it was lost, or told to go, between the two
                return replica

    async def _wait_for(self, given: asyncio.Future[str]) -> None:
        """Wait for a worker with room: as long as it takes, but without any worker at all only for one to start."""
        while not given.done():
            had_none = not self._admitted
            await asyncio.wait({given}, timeout=self._start_timeout_s)
            if not given.done() and had_none and not self._admitted:
                raise DeadlineError(
                    f"no {self._name} worker was ready within {self._start_timeout_s:g} s: its replacement is still starting"
                )
        given.result()

    def _raise_if_exhausted(self) -> None:
        if self._closed:
            raise PoolExhaustedError(f"the {self._name} pool is closed")
        if self._is_exhausted:
            raise self._exhausted()

    @property
    def _is_exhausted(self) -> bool:
        return not self._admitted and not self._replacing

    def _exhausted(self) -> PoolExhaustedError:
        reason = f"; the last one failed because: {_reason(self._last_failure)}" if self._last_failure else ""
        return PoolExhaustedError(f"no {self._name} worker is left and the restart budget is spent{reason}")

    async def _watched(self, replica: _Replica, call: Callable[[ActorHandle], Awaitable[T]]) -> T:
        replica.leases += 1  # one that is told to go meanwhile goes behind the call
        try:
            with self._watch(replica):
                return await call(replica.actor)
        finally:
            replica.leases -= 1
            self._end_if_drained(replica)

    @contextmanager
    def _watch(self, replica: _Replica) -> Iterator[None]:
        """Around work on a worker: notices that it is lost, and gives the caller errors of ours."""
        try:
            yield
        except _LOST as error:
            self._lose(replica, error)
            raise WorkerLostError(f"{replica.name} was lost: {_reason(error)}") from error
        except RayTaskError as error:
            raise as_rlad_error(error, who=replica.name) from error

    def _lose(self, replica: _Replica, error: Exception) -> None:
        """Remove a worker that failed its caller, and start its replacement. The first of several callers that notice does it."""
        if self._draining.pop(replica.name, None) is not None:
            ray.kill(replica.actor)
            return
        if self._admitted.get(replica.name) is not replica:
            return
        del self._admitted[replica.name]
        self._router.remove(replica.name)
        self._last_failure = error
        ray.kill(replica.actor)  # it may only be unreachable, and must not come back beside its replacement
        logger.warning(
            "pool=%s worker=%s state=lost restarts_left=%d reason=%s",
            self._name,
            replica.name,
            self._budget.left,
            _reason(error),
        )
        if not self._closed and len(self._admitted) + len(self._replacing) < self._size and self._budget.take():
            self._start_in_background(self._replace())
        if self._is_exhausted:
            self._router.fail(self._exhausted())

    def _start_in_background(self, starting: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(starting)
        self._replacing.add(task)
        task.add_done_callback(self._replacing_ended)

    def _end_if_drained(self, replica: _Replica) -> None:
        """Let a worker go that the pool does not want any more, once nobody waits for it."""
        if replica.leases == 0 and self._draining.get(replica.name) is replica and not self._closed:
            task = asyncio.create_task(self._end(replica))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _end(self, replica: _Replica) -> None:
        try:
            if self._retire is not None:
                await self._retire(replica.actor)
        except (*_LOST, RladError, RayTaskError) as error:
            logger.warning("pool=%s worker=%s state=did_not_retire reason=%s", self._name, replica.name, _reason(error))
        finally:
            ray.kill(replica.actor)
            self._draining.pop(replica.name, None)
        logger.info("pool=%s worker=%s state=gone", self._name, replica.name)

    async def _grow(self) -> None:
        try:
            await self._bring_up()
        except RladError as error:
            self._size -= 1
            self._last_failure = error
            logger.warning("pool=%s state=could_not_grow target=%d reason=%s", self._name, self._size, error)

    def _replacing_ended(self, task: asyncio.Task[None]) -> None:
        self._replacing.discard(task)
        if self._is_exhausted and not self._closed:
            self._router.fail(self._exhausted())

    async def _replace(self) -> None:
        while True:
            try:
                return await self._bring_up()
            except RladError as error:
                self._last_failure = error
                logger.warning(
                    "pool=%s state=replacement_failed restarts_left=%d reason=%s", self._name, self._budget.left, error
                )
                if not self._budget.take():
                    return None

    async def _bring_up(self) -> None:
        """Spawn one actor, prepare and admit it."""
        number = next(self._numbers)
        name = f"{self._name}-{number}"
        actor: ActorHandle | None = None
        deadline = asyncio.timeout(self._start_timeout_s)
        try:
            async with deadline:
                actor = self._spawn(number)
                self._names[actor] = name
                await self._prepare(actor)
        except BaseException as error:
            if actor is not None:
                ray.kill(actor)
            if not isinstance(error, Exception):
                raise
            if deadline.expired():
                raise DeadlineError(f"{name} was not ready within {self._start_timeout_s:g} s") from error
            raise PoolExhaustedError(f"{name} did not start: {_reason(error)}") from error
        # No await since the preparation ended: what it saw (the newest weights, say) still holds.
        self._admitted[name] = _Replica(name, actor)
        self._router.admit(name)
        logger.info("pool=%s worker=%s state=admitted", self._name, name)


async def _up(actor: ActorHandle) -> None:
    await actor.__ray_ready__.remote()


def _reason(error: BaseException) -> str:
    """One line. Ray's own messages say what happened in their last line, below a list of ids or a traceback."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[-1], _REASON_CHARS, placeholder="...") if lines else type(error).__name__
