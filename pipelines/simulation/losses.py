"""Losses of teacher replicas and of the learner in a simulation, at random times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from actors.experience.group import ColumnsRef
from actors.pool.routing import Router
from pipelines.simulation.stand_ins import Server, StandInLearner
from pipelines.simulation.workload import Speeds
from rlad.contracts import Array, TeacherSupport


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses of one process.

    Attributes:
        lifetimes_s: Endless lifetimes of the process and of its replacements, in order, seconds.
        restart_s: Time until its replacement works, seconds.
    """

    lifetimes_s: Iterator[float]
    restart_s: float


def exponential_lifetimes(mean_s: float, *, seed: tuple[int, int]) -> Iterator[float]:
    """Draw lifetimes of a process that fails at a constant rate, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield float(random.exponential(mean_s))


async def repeat_losses(losses: Losses, *, lose: Callable[[], None], replace: Callable[[], None]) -> None:
    """Lose a process and replace it, again and again, until cancelled."""
    while True:
        await asyncio.sleep(next(losses.lifetimes_s))
        lose()
        await asyncio.sleep(losses.restart_s)
        replace()


class SimulatedTeacher:
    """Teacher replicas. Each scores one group at a time. Groups of a lost replica are scored by others."""

    def __init__(self, speeds: Speeds, replicas: int, losses: Sequence[Losses] = ()) -> None:
        """
        Args:
            speeds: Speeds of the pools.
            replicas: Number of replicas.
            losses: Losses of each replica; empty if none is lost.
        """
        self._speeds = speeds
        self._router = Router()
        self._replicas: dict[str, Server] = {}
        self._lost: dict[str, asyncio.Future[None]] = {}
        self._lives: list[asyncio.Task[None]] = []
        self.busy_s = 0.0
        self.num_lost = 0
        for number in range(replicas):
            self._admit(f"teacher-{number}")
        for name, each in zip(self._replicas, losses, strict=False):
            life = repeat_losses(each, lose=partial(self._lose, name), replace=partial(self._admit, name))
            self._lives.append(asyncio.create_task(life))

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ColumnsRef:
        seconds = num_tokens * self._speeds.teacher_token_s
        is_scored = False
        while not is_scored:
            name = await self._router.enqueue(num_tokens)
            try:
                is_scored = await self._work(name, seconds)
            finally:
                self._router.release(name, num_tokens)
        self.busy_s += seconds

    def close(self) -> None:
        """End the losses."""
        for life in self._lives:
            life.cancel()

    async def _work(self, name: str, seconds: float) -> bool:
        """Return whether the replica finished before it was lost."""
        if not self._lives:
            await self._replicas[name].work(seconds)
            return True
        lost, working = self._lost[name], asyncio.create_task(self._replicas[name].work(seconds))
        try:
            # unlimited wait: in virtual time, where the replica either finishes or is lost
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            return working.done()
        finally:
            working.cancel()

    def _admit(self, name: str) -> None:
        self._replicas[name] = Server()
        self._lost[name] = asyncio.get_running_loop().create_future()
        self._router.admit(name)

    def _lose(self, name: str) -> None:
        self.num_lost += 1
        self._router.remove(name)
        self._lost[name].set_result(None)


class LosableLearner:
    """Learner that restarts from its newest checkpoint after a loss, as Ray Train restarts the ranks."""

    def __init__(self, learner: StandInLearner, losses: Losses | None) -> None:
        """
        Args:
            learner: The learner.
            losses: Losses of the learner, which loses all ranks with one; None if it is never lost.
        """
        self._learner, self._losses = learner, losses
        self.num_lost = 0

    async def run(self, steps: int) -> None:
        """Train until policy version `steps`."""
        if self._losses is None:
            return await self._learner.run(steps)
        while True:
            life = asyncio.create_task(self._learner.run(steps, self._learner.committed))
            try:
                await asyncio.wait({life}, timeout=next(self._losses.lifetimes_s))
                if life.done():
                    return life.result()
            finally:
                life.cancel()
                with suppress(asyncio.CancelledError):
                    await life
            self.num_lost += 1
            await asyncio.sleep(self._losses.restart_s)
