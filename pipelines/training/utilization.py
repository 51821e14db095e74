"""Idle share of each pool: the time its workers could have worked since the last step, less the time they did."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.training.pools import Pools
from rlad.errors import RladError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyTime:
    """Work of a pool.

    Attributes:
        busy_s: Seconds that all its workers have worked since the pool started.
        workers: Its present number of workers.
    """

    busy_s: float
    workers: int


class UtilizationMeter:
    """Reads the busy time of all pools at every step."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._read_at = time.monotonic()
        self._before: dict[str, BusyTime] = {}

    async def idle_shares(self, learner: Mapping[str, float]) -> dict[str, float]:
        """Return `idle/POOL` since the last call, in [0, 1].

        A worker is idle while it has no group, a learner rank while it has no batch shard. Teachers that do not answer
        are left out, as are shared teachers, which work for other runs too.

        Args:
            learner: The learner's metrics of the step.
        """
        now, after = time.monotonic(), await self._read()
        elapsed_s = max(now - self._read_at, 1e-9)
        shares = idle_shares(self._before, after, elapsed_s)
        self._before, self._read_at = after, now
        worked_s = sum(learner.get(f"learner/{name}_s", 0.0) for name in ("train", "publish", "send", "checkpoint"))
        return {**shares, "idle/learner": _clamped(1 - worked_s / elapsed_s)}

    async def _read(self) -> dict[str, BusyTime]:
        rollout, verifiers = self._pools.rollout, self._pools.verifiers.stats()
        busy = {
            "rollout": BusyTime(busy_s=sum(worker.busy_s for worker in rollout.stats()), workers=rollout.state().ready),
            "verifier": BusyTime(busy_s=verifiers.busy_s, workers=verifiers.processes),
        }
        for pool, teacher in self._pools.own_teachers.items():
            try:
                stats = await teacher.stats()
            except RladError as error:
                logger.warning("pool=%s state=no_stats reason=%s", pool, error)
                continue
            busy[pool] = BusyTime(busy_s=stats.busy_s, workers=self._pools.scalable[pool].state().ready)
        return busy


def idle_shares(before: Mapping[str, BusyTime], after: Mapping[str, BusyTime], elapsed_s: float) -> dict[str, float]:
    """Return the idle share of every pool that was read both times and whose busy time has not restarted at zero."""
    shares = {}
    for pool, work in after.items():
        worked_s = work.busy_s - before[pool].busy_s if pool in before else -1.0
        if work.workers and worked_s >= 0:
            shares[f"idle/{pool}"] = _clamped(1 - worked_s / (work.workers * elapsed_s))
    return shares


def _clamped(value: float) -> float:
    """Clamp to [0, 1]. The workers of a pool that shrank have worked more than the remaining ones could."""
    return min(1.0, max(0.0, value))
