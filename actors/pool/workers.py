"""Workers of a pool: their states, the allowed transitions, and the collection that counts them.

    STARTING ──> READY ──> DRAINING ──> RETIRING ──> STOPPED
       │           │          │
       │           └──────────┴──> LOST
       ├──> LOST        (did not start)
       └──> CANCELLED ──> STOPPED

`ActorPool.close` moves a worker in any live state to STOPPED.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Protocol

import ray
from ray.actor import ActorHandle

from actors.health.monitor import HeartbeatMonitor
from actors.health.node_watch import ProcessId
from rlad.errors import WorkerLostError


class WorkerState(StrEnum):
    """State of one worker of a pool."""

    STARTING = auto()
    """The actor is being created and prepared. It gets no work."""
    READY = auto()
    """The actor takes work."""
    CANCELLED = auto()
    """The pool shrank before the worker was ready. Its start is being cancelled."""
    DRAINING = auto()
    """The worker finishes its leases and gets no further work."""
    RETIRING = auto()
    """The last lease has ended. The pool's `retire` hook runs, then the actor is killed."""
    LOST = auto()
    """Terminal: the actor died, became unreachable or did not start."""
    STOPPED = auto()
    """Terminal: the pool killed an actor that it no longer needs."""


_ACTIVE_STATES = frozenset({WorkerState.STARTING, WorkerState.READY})
TERMINAL_STATES = frozenset({WorkerState.LOST, WorkerState.STOPPED})

TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = MappingProxyType(
    {
        WorkerState.STARTING: frozenset(
            {WorkerState.READY, WorkerState.CANCELLED, WorkerState.LOST, WorkerState.STOPPED}
        ),
        WorkerState.CANCELLED: frozenset({WorkerState.STOPPED}),
        WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.LOST, WorkerState.STOPPED}),
        WorkerState.DRAINING: frozenset({WorkerState.RETIRING, WorkerState.LOST, WorkerState.STOPPED}),
        WorkerState.RETIRING: frozenset({WorkerState.STOPPED}),
        WorkerState.LOST: frozenset(),
        WorkerState.STOPPED: frozenset(),
    }
)
"""Allowed transitions by source state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """Size of a pool.

    Attributes:
        target: Target number of workers.
        ready: Number of workers that take work.
        starting: Number of workers whose start is under way or is being cancelled.
        draining: Number of workers that finish their work and then stop.
    """

    target: int
    ready: int
    starting: int
    draining: int


class Scalable(Protocol):
    """Pool whose size can change while it works."""

    def state(self) -> PoolState: ...

    def resize(self, size: int, /) -> None:
        """Change the target number of workers, at least 1. Returns at once."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker of a pool.

    Attributes:
        name: Name in logs and errors.
        number: Number passed to the pool's `spawn`; never reused.
        state: Current state. Only `WorkerSet.move` changes it.
        actor: Ray actor; None until it is spawned.
        monitor: Monitor of the pool; None without one.
        process: Process of the actor, once the monitor watches it.
        leases: Number of callers that use the actor now.
        task: Background task of the start or the retirement.
    """

    name: str
    number: int
    state: WorkerState = WorkerState.STARTING
    actor: ActorHandle | None = None
    monitor: HeartbeatMonitor | None = None
    process: ProcessId | None = None
    leases: int = 0
    task: asyncio.Task[None] | None = None

    async def watch(
        self, pool: str, deadline_s: float, has_engine: bool, on_lost: Callable[[WorkerLostError], None]
    ) -> None:
        """Let the monitor watch the actor's process, from the end of its constructor on.

        Args:
            pool: Name of the pool.
            deadline_s: Deadline of the constructor, seconds.
            has_engine: Whether the child processes of the actor are an engine, without which it cannot work.
            on_lost: Called after the process has ended, or was killed because it had stopped.
        """
        if self.monitor is None or self.actor is None:
            return
        self.process = await self.monitor.watch(
            self.actor,
            self.name,
            role=pool,
            deadline_s=deadline_s,
            has_engine=has_engine,
            on_lost=lambda reason: on_lost(WorkerLostError(reason)),
        )

    def kill(self, *, lost: bool) -> None:
        """Kill the actor, if it was spawned.

        Args:
            lost: Whether the worker was lost, and does not end as planned.
        """
        if self.monitor is not None and self.process is not None:
            self.monitor.forget(self.process, lost=lost)
        if self.actor is not None:
            ray.kill(self.actor)


class WorkerSet:
    """Workers of one pool that are not in a terminal state, with a count for each state.

    Counts change with every transition and are not computed on demand: every lease reads them.

    Attributes:
        num_active: Number of workers that take work or will: ready and starting ones.
    """

    def __init__(self) -> None:
        self.num_active = 0
        self._workers: dict[str, Worker] = {}
        self._counts = dict.fromkeys(WorkerState, 0)

    def __iter__(self) -> Iterator[Worker]:
        """Iterate over a snapshot of the workers, oldest first."""
        return iter(list(self._workers.values()))

    def get(self, name: str) -> Worker | None:
        """Return the worker of this name; None when it is unknown or in a terminal state."""
        return self._workers.get(name)

    def count(self, state: WorkerState) -> int:
        """Return the number of workers in a state that is not terminal."""
        return self._counts[state]

    def in_state(self, state: WorkerState) -> list[Worker]:
        """Return the workers in a state, oldest first."""
        return [worker for worker in self._workers.values() if worker.state is state]

    def state(self, *, target: int) -> PoolState:
        """Return the size of a pool that has these workers and a target number."""
        count = self._counts
        return PoolState(
            target=target,
            ready=count[WorkerState.READY],
            starting=count[WorkerState.STARTING] + count[WorkerState.CANCELLED],
            draining=count[WorkerState.DRAINING] + count[WorkerState.RETIRING],
        )

    def add(self, worker: Worker) -> None:
        """Add a worker in its initial state."""
        self._workers[worker.name] = worker
        self._count(worker.state, 1)

    def move(self, worker: Worker, state: WorkerState) -> None:
        """Change the state of a worker. A worker in a terminal state leaves the set.

        Raises:
            ValueError: `TRANSITIONS` does not allow the change.
        """
        if state not in TRANSITIONS[worker.state]:
            raise ValueError(f"worker {worker.name} cannot change from {worker.state} to {state}")
        self._count(worker.state, -1)
        worker.state = state
        if state in TERMINAL_STATES:
            del self._workers[worker.name]
        else:
            self._count(state, 1)

    def _count(self, state: WorkerState, change: int) -> None:
        self._counts[state] += change
        if state in _ACTIVE_STATES:
            self.num_active += change
