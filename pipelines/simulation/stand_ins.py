"""Stand-ins for engines. Each takes the time that its work would take, and computes nothing.

They are plain classes. In the simulator they sleep in virtual time; the scheduler benchmark wraps them in Ray actors
and a Serve deployment.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

from actors.engines.vllm_engine.generation_meter import GenerationMeter
from actors.experience.broker import StepReport
from actors.messages import WeightsPublication
from pipelines.simulation.workload import Lengths, Speeds
from rlad.contracts import GenerationProgress, WeightsManifest
from rlad.errors import BrokerRestartedError

_RESTART_PAUSE_S = 0.2


class DecodingSlots:
    """Decoding slots of a rollout engine, first come, first served.

    A slot starts the next response at the time when the one before was due to end, because a real engine does not wait
    for the driver's event loop.
    """

    def __init__(self, speeds: Speeds) -> None:
        self._speeds = speeds
        self._free = asyncio.Semaphore(speeds.slots)
        self._free_since = [0.0] * speeds.slots  # a heap, with an entry for each free slot
        self._running = 0
        self._meter = GenerationMeter(lambda: asyncio.get_running_loop().time())

    async def decode(self, lengths: tuple[int, ...]) -> None:
        """Return when the longest response is finished."""
        if self._speeds.token_s == 0:
            return
        asked_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._decode_one(length, asked_at) for length in lengths))

    def progress(self) -> GenerationProgress:
        """Return what the slots have generated. Every busy slot generates at the same speed."""
        measured = self._meter.progress()
        return replace(measured, tokens=int(measured.sequence_s / self._speeds.token_s))

    async def _decode_one(self, length: int, asked_at: float) -> None:
        clock = asyncio.get_running_loop().time
        async with self._free:
            ends_at = max(asked_at, heapq.heappop(self._free_since)) + length * self._speeds.token_s
            self._run(1)
            try:
                await asyncio.sleep(ends_at - clock())
            finally:
                self._run(-1)
                heapq.heappush(self._free_since, min(ends_at, clock()))  # earlier, if it was cancelled

    def _run(self, change: int) -> None:
        self._running += change
        self._meter.record(tokens=0, running=self._running)


class Server:
    """Server that processes one request at a time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    async def work(self, seconds: float) -> None:
        async with self._free:
            await asyncio.sleep(seconds)


class StandInLearner:
    """Claims batch shards as the learner's ranks do, takes the time to train on them, and publishes empty weights."""

    def __init__(self, broker: Any, lengths: Lengths, speeds: Speeds, *, checkpoint_steps: int = 1) -> None:
        """
        Args:
            broker: Handle of an `ExperienceBroker`, whose methods have an awaitable `remote`.
            lengths: Distribution of the response lengths.
            speeds: Speeds of the pools.
            checkpoint_steps: Steps between two checkpoints.
        """
        self._broker, self._lengths, self._speeds = broker, lengths, speeds
        self._checkpoint_steps = checkpoint_steps
        self.committed = 0
        self._reports: list[StepReport] = []
        self.trained_s = self.waited_s = 0.0

    async def run(self, steps: int, first: int = 0) -> None:
        """Train from policy version `first` to version `steps`."""
        clock = asyncio.get_running_loop().time
        await self._report("report_started", first, first, [publication(first)])
        for step in range(first, steps):
            index, is_done = 0, False
            while not is_done:
                asked = clock()
                shard = None
                while shard is None:
                    shard = await self._call("claim", step, 0, index)
                claimed = clock()
                tokens = sum(
                    self._lengths.of_group(uid)[response] for batch in shard.micro_batches for uid, response in batch
                )
                await asyncio.sleep(
                    tokens * self._speeds.learner_token_s + (self._speeds.update_s if shard.ends_update else 0.0)
                )
                self.waited_s += claimed - asked
                self.trained_s += clock() - claimed
                index, is_done = index + 1, shard.ends_step
            await self._report("finish_step", step + 1, step, [publication(step + 1)], {})
            if (step + 1) % self._checkpoint_steps == 0 or step + 1 == steps:
                await self._call("commit", step + 1)
                self.committed = step + 1

    async def _report(self, method: str, version: int, *arguments: Any) -> None:
        await self._call(method, *arguments)
        self._reports = [
            *self._reports[-1:],
            StepReport(version=version, publications=[publication(version)], metrics={}),
        ]

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Call the broker, again after it was restarted, as `BrokerLink` does."""
        while True:
            try:
                return await getattr(self._broker, method).remote(*arguments)  # unlimited wait: the run has a deadline
            except BrokerRestartedError:
                if self._reports:
                    await self._call("recover_learner", self._reports, False)
            except Exception as error:
                if not _is_actor_death(error):
                    raise
            await asyncio.sleep(_RESTART_PAUSE_S)


def _is_actor_death(error: Exception) -> bool:
    from ray.exceptions import RayActorError  # imported late: a simulation needs no Ray

    return isinstance(error, RayActorError)


def publication(version: int) -> WeightsPublication:
    """Return a publication that the driver accepts as weights of a version."""
    return WeightsPublication(manifest=WeightsManifest(version=version, checksum=f"stand-in-{version}", num_bytes=1))


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any

    def remote(self, *arguments: object) -> Awaitable[Any]:
        return self.method(*arguments)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class InProcess:
    """Gives a local object the calling convention of a Ray actor handle."""

    target: Any

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.target, name))
