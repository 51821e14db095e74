"""What stands in for engines: each takes the time that its work would take, and computes nothing.

They are plain classes. In the simulator they sleep in virtual time; the scheduler benchmark makes Ray actors and a Serve deployment of them.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from actors.messages import WeightsPublication
from pipelines.simulation.workload import Lengths, Speeds
from rlad.contracts import WeightsManifest


class DecodingSlots:
    """A sampler's engine: so many responses at once, first come, first served.

    A slot goes on with the next response at the moment that the one before it should have ended: an engine does not wait for the event loop to wake up.
    """

    def __init__(self, speeds: Speeds) -> None:
        self._speeds = speeds
        self._free = asyncio.Semaphore(speeds.slots)
        self._free_since = [0.0] * speeds.slots  # of the free slots, a heap

    async def decode(self, lengths: tuple[int, ...]) -> None:
        """Return when the longest of the responses is finished."""
        if self._speeds.token_s == 0:
            return
        asked_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._decode_one(length, asked_at) for length in lengths))

    async def _decode_one(self, length: int, asked_at: float) -> None:
        clock = asyncio.get_running_loop().time
        async with self._free:
            ends_at = max(asked_at, heapq.heappop(self._free_since)) + length * self._speeds.token_s
            try:
                await asyncio.sleep(ends_at - clock())
            finally:
                heapq.heappush(self._free_since, min(ends_at, clock()))  # sooner, if it was cancelled


class Server:
    """One that does its work piece after piece."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    async def work(self, seconds: float) -> None:
        async with self._free:
            await asyncio.sleep(seconds)


class StandInLearner:
    """Claims parts from the broker as the learner's ranks do, takes the time of training on them, and publishes weights that are nowhere."""

    def __init__(self, broker: Any, lengths: Lengths, speeds: Speeds) -> None:
        """
        Args:
            broker: whose methods have a `remote` that can be awaited.
        """
        self._broker, self._lengths, self._speeds = broker, lengths, speeds
        self.trained_s = self.waited_s = 0.0

    async def run(self, steps: int, first: int = 0) -> None:
        """Train from the weights of version `first` to those of version `steps`."""
        clock = asyncio.get_running_loop().time
        await self._broker.report_started.remote(first, [publication(first)])
        for step in range(first, steps):
            index, is_done = 0, False
            while not is_done:
                asked = clock()
                part = None
                while part is None:
                    part = await self._broker.claim.remote(step, 0, index)
                claimed = clock()
                tokens = sum(
                    self._lengths.of_group(uid)[response] for batch in part.micro_batches for uid, response in batch
                )
                await asyncio.sleep(
                    tokens * self._speeds.learner_token_s + (self._speeds.update_s if part.ends_update else 0.0)
                )
                self.waited_s += claimed - asked
                self.trained_s += clock() - claimed
                index, is_done = index + 1, part.ends_step
            await self._broker.finish_step.remote(step, [publication(step + 1)], {})
            await self._broker.commit.remote(step + 1)  # nothing is kept: there is nothing to go back to


def publication(version: int) -> WeightsPublication:
    """Weights of a version, as far as the driver can tell."""
    return WeightsPublication(manifest=WeightsManifest(version=version, checksum=f"stand-in-{version}", num_bytes=1))


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any

    def remote(self, *arguments: object) -> Awaitable[Any]:
        return self.method(*arguments)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class InProcess:
    """An object in this process behind the calls of a Ray actor's handle."""

    target: Any

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.target, name))
