"""Monitor of a run's processes: notices those that have stopped within a few heartbeats, and ends them.

At every heartbeat the watch of each node looks at the processes there. One that was stopped at several looks in a row
is killed; the pools, Ray Train and Ray Serve then replace it as they do after a crash. All decisions are those of
`rlad.failures`.

    processes ──announce──> key-value store ──┐
    pools, driver ──────────watch────────────> monitor ──look, kill──> watch of each node
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.health.node_watch import NodeWatch, ProcessId, Sighting
from actors.health.processes import announced, forget, forget_all, process_of
from rlad.failures import Action, Event, decide

logger = logging.getLogger(__name__)

OnLost = Callable[[str], None]
"""Called with the reason after a process was lost."""

# Deadline of an answer of a node's watch, whose process may have to start.
_WATCH_START_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHealth:
    """Health of one process of a run.

    Attributes:
        name: Name of the worker or service.
        role: Name of its pool, or of the service.
        state: `alive`, `stopped`, or `unknown` while its node's watch does not answer.
        seen_s: Seconds since the process was last seen alive.
        restarts: Number of processes of the same pool or service that were lost.
    """

    name: str
    role: str
    state: str
    seen_s: float
    restarts: int


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A process under watch."""

    process: ProcessId
    name: str
    role: str
    has_engine: bool
    on_lost: OnLost | None
    is_announced: bool
    seen_at: float
    missed: int = 0
    is_unknown: bool = False


class HeartbeatMonitor:
    """Watches the processes of a run on all nodes. All methods must be called from one event loop."""

    def __init__(self, run_id: str, *, heartbeat_s: float, missed_heartbeats: int) -> None:
        """
        Args:
            run_id: Name under which processes announce themselves.
            heartbeat_s: Time between two looks at each process.
            missed_heartbeats: Number of looks in a row at which a process must be stopped to be killed.
        """
        self._run_id, self._heartbeat_s, self._missed_heartbeats = run_id, heartbeat_s, missed_heartbeats
        self._watched: dict[ProcessId, _Watched] = {}
        self._losses: Counter[str] = Counter()
        self._nodes: dict[str, asyncio.Task[None]] = {}
        self._here = ray.get_runtime_context().get_node_id()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch for the duration of the block."""
        await asyncio.to_thread(forget_all, self._run_id)  # of an earlier driver of this run
        finding = asyncio.create_task(self._find_announced())
        try:
            yield
        finally:
            tasks = [finding, *self._nodes.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(forget_all, self._run_id)

    async def watch(
        self,
        actor: ActorHandle,
        name: str,
        *,
        deadline_s: float,
        role: str | None = None,
        has_engine: bool = False,
        on_lost: OnLost | None = None,
    ) -> ProcessId:
        """Watch the process of an actor. Waits until the actor's constructor has returned.

        Args:
            actor: The actor.
            name: Name in logs and in the status of the run.
            deadline_s: Deadline for the constructor.
            role: Name of its pool; by default `name`.
            has_engine: Whether its child processes are an engine, without which it cannot work.
            on_lost: Called after the process has ended, or was killed because it had stopped.

        Raises:
            TimeoutError: The actor was not up in time.
            RayActorError: The actor has died.
        """
        process = await process_of(actor, deadline_s=deadline_s)
        self._add(process, name, role or name, has_engine=has_engine, on_lost=on_lost)
        return process

    def forget(self, process: ProcessId, *, lost: bool) -> None:
        """Stop watching a process that has ended or is about to be ended.

        Args:
            process: The process.
            lost: Whether it was lost, and did not end as planned.
        """
        watched = self._watched.pop(process, None)
        if watched is not None and lost:
            self._losses[watched.role] += 1

    def health(self) -> tuple[ActorHealth, ...]:
        """Return the health of every process, in order of their names."""
        now = time.monotonic()
        return tuple(
            ActorHealth(
                name=watched.name,
                role=watched.role,
                state="unknown" if watched.is_unknown else "stopped" if watched.missed else "alive",
                seen_s=now - watched.seen_at,
                restarts=self._losses[watched.role],
            )
            for watched in sorted(self._watched.values(), key=lambda watched: watched.name)
        )

    def _add(
        self,
        process: ProcessId,
        name: str,
        role: str,
        *,
        has_engine: bool,
        on_lost: OnLost | None = None,
        is_announced: bool = False,
    ) -> None:
        self._watched[process] = _Watched(
            process=process,
            name=name,
            role=role,
            has_engine=has_engine,
            on_lost=on_lost,
            is_announced=is_announced,
            seen_at=time.monotonic(),
        )
        if process.node not in self._nodes:
            self._nodes[process.node] = asyncio.create_task(self._watch_node(process.node))

    async def _find_announced(self) -> None:
        """Watch processes that announce themselves."""
        while True:
            try:
                found = await asyncio.to_thread(announced, self._run_id)
            except (RayError, OSError, RuntimeError) as error:  # the cluster's store does not answer
                logger.warning("announcements=unreadable reason=%s", error)
                found = []
            for each in found:
                if each.process not in self._watched:
                    self._add(each.process, each.name, each.role, has_engine=each.has_engine, is_announced=True)
            await asyncio.sleep(self._heartbeat_s)

    async def _watch_node(self, node: str) -> None:
        """Look at the processes of a node at every heartbeat, until none is left."""
        loop, watch = asyncio.get_running_loop(), self._open_watch(node)
        failures = 0
        try:
            while group := [watched for watched in self._watched.values() if watched.process.node == node]:
                began = loop.time()
                try:
                    sightings = await watch.look([(each.process, each.has_engine) for each in group])
                    failures = 0
                    for watched, sighting in zip(group, sightings, strict=True):
                        await self._act_on(watched, sighting, watch)
                except (RayError, TimeoutError) as error:
                    failures += 1
                    logger.warning("node=%s watch=no_answer failures=%d reason=%s", node, failures, error)
                    if await asyncio.to_thread(_is_removed, node):
                        await self._lose_node(group)
                        return
                    for watched in group:
                        watched.is_unknown = True
                    watch.close()
                    watch = self._open_watch(node)
                await asyncio.sleep(began + self._heartbeat_s - loop.time())
        finally:
            watch.close()
            self._nodes.pop(node, None)

    async def _lose_node(self, group: list[_Watched]) -> None:
        for watched in group:
            await self._lose(watched, "its node was removed")

    async def _act_on(self, watched: _Watched, sighting: Sighting, watch: _OpenWatch) -> None:
        watched.is_unknown = False
        match sighting:
            case Sighting.ALIVE:
                watched.missed, watched.seen_at = 0, time.monotonic()
            case Sighting.GONE:
                await self._lose(watched, "its process has ended")
            case Sighting.STOPPED:
                watched.missed += 1
                action = decide(Event.HEARTBEAT_MISSED, happened=watched.missed, budget=self._missed_heartbeats - 1)
                if action is Action.REPLACE:
                    await self._end(watched, watch)

    async def _end(self, watched: _Watched, watch: _OpenWatch) -> None:
        reason = f"its process {watched.process.pid} was stopped, {watched.missed} heartbeats in a row"
        logger.warning("process=%s state=hung missed=%d pid=%d", watched.name, watched.missed, watched.process.pid)
        await watch.kill(watched.process)
        await self._lose(watched, reason)

    async def _lose(self, watched: _Watched, reason: str) -> None:
        """Stop watching a lost process, and report the reason to its pool, whose calls may have noticed it before."""
        if watched.is_announced:
            await asyncio.to_thread(forget, self._run_id, watched.process)
        self.forget(watched.process, lost=True)
        if watched.on_lost is not None:
            watched.on_lost(reason)

    def _open_watch(self, node: str) -> _OpenWatch:
        return _OpenWatch(None if node == self._here else node)


def _is_removed(node: str) -> bool:
    return not any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())


class _OpenWatch:
    """The watch of a node: an actor, or an object of this process on the driver's own node."""

    def __init__(self, node: str | None) -> None:
        """
        Args:
            node: Ray's id of the node; None for the driver's own.
        """
        self._local, self._actor = NodeWatch(), None
        if node is not None:
            # Exactly there: elsewhere its answers would concern other processes.
            strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            self._actor = ray.remote(NodeWatch).options(num_cpus=0, scheduling_strategy=strategy).remote()

    async def look(self, processes: list[tuple[ProcessId, bool]]) -> list[Sighting]:
        return list(await self._call("look", processes))

    async def kill(self, process: ProcessId) -> None:
        await self._call("kill", process)

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    async def _call(self, method: str, argument: Any) -> Any:
        if self._actor is None:
            return await asyncio.to_thread(getattr(self._local, method), argument)
        async with asyncio.timeout(_WATCH_START_S):
            return await getattr(self._actor, method).remote(argument)
