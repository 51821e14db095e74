"""How much of each pool's time goes unused: the difference between what its workers could have worked since the last step and what they did."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.training.pools import Pools
from rlad.errors import RladError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds that all workers of a pool have worked since the pool started, and how many there are now."""

    busy_s: float
    workers: int


class PoolUse:
    """Reads the pools' clocks at every step."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._read_at = time.monotonic()
        self._before: dict[str, Work] = {}

    async def idle_shares(self, learner: Mapping[str, float]) -> dict[str, float]:
        """`idle/POOL` since the last call, in [0, 1]. A worker is idle while it has no group; a learner while it has no part. A teacher that does not
        answer, or is shared and works for others too, is left out.

        Args:
            learner: metrics of the step.
        """
        now, after = time.monotonic(), await self._read()
        elapsed_s = max(now - self._read_at, 1e-9)
        shares = idle_shares(self._before, after, elapsed_s)
        self._before, self._read_at = after, now
        worked_s = sum(learner.get(f"learner/{name}_s", 0.0) for name in ("train", "publish", "send", "checkpoint"))
        return {**shares, "idle/learner": _share(1 - worked_s / elapsed_s)}

    async def _read(self) -> dict[str, Work]:
        rollout, verifiers = self._pools.rollout, self._pools.verifiers.stats()
        work = {
            "rollout": Work(busy_s=sum(worker.busy_s for worker in rollout.stats()), workers=rollout.state().ready),
            "verifier": Work(busy_s=verifiers.busy_s, workers=verifiers.processes),
        }
        for pool, teacher in self._pools.own_teachers.items():
            try:
                stats = await teacher.stats()
            except RladError as error:
                logger.warning("pool=%s state=no_stats reason=%s", pool, error)
                continue
            work[pool] = Work(busy_s=stats.busy_s, workers=self._pools.scalable[pool].state().ready)
        return work


def idle_shares(before: Mapping[str, Work], after: Mapping[str, Work], elapsed_s: float) -> dict[str, float]:
    """Of every pool that was read both times, and whose clock has not started anew with another replica."""
    shares = {}
    for pool, work in after.items():
        worked_s = work.busy_s - before[pool].busy_s if pool in before else -1.0
        if work.workers and worked_s >= 0:
            shares[f"idle/{pool}"] = _share(1 - worked_s / (work.workers * elapsed_s))
    return shares


def _share(value: float) -> float:
    """A pool that shrank has worked more than those that are left could have."""
    return min(1.0, max(0.0, value))
