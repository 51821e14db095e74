"""The real pools of rollout workers and verifiers on one node of a cluster, with actors in place of engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from actors.experience.group import ColumnsRef
from actors.health.monitor import HeartbeatMonitor
from actors.messages import VerifierResult
from actors.pool.pool import ActorPool
from actors.rollout.pool import RolloutPool
from actors.verifier.pool import JudgingPool
from benchmarks.chaos.network.far_actors import FarVerifier, FarWorker
from pipelines.simulation.harness import StandInPools
from rlad.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FarPools:
    """Pools of a run on one node.

    Attributes:
        rollout: Rollout workers.
        verifiers: Verifiers of all tasks.
    """

    rollout: RolloutPool
    verifiers: JudgingPool

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        """Judge a group. See `GroupPipeline`."""
        return await self.verifiers.verify(columns, num_tokens=num_tokens)

    def pools(self) -> StandInPools:
        """Return the pools of the step pipeline."""
        return StandInPools(
            rollout=self.rollout, verifiers=self, teacher=None, update_weights=self.rollout.update_weights
        )


@asynccontextmanager
async def open_far_pools(
    config: RunConfig, monitor: HeartbeatMonitor, *, run_id: str, node: dict[str, str]
) -> AsyncIterator[FarPools]:
    """Start pools with the sizes and budgets of a configuration, and close them at the end of the block.

    Args:
        config: The run's configuration.
        monitor: Monitor of the run.
        run_id: Name of the run.
        node: Labels of the node of all workers.
    """
    start_timeout_s, judges = config.cluster.start_timeout_s, config.verifier_pool

    def spawn_verifier(_: int) -> ActorHandle:
        return ray.remote(FarVerifier).options(num_cpus=judges.cpus_per_worker, label_selector=node).remote()

    rollout = RolloutPool(
        config.rollout,
        model_path="nowhere",
        dtype="float32",
        seed=0,
        start_timeout_s=start_timeout_s,
        run_id=run_id,
        label_selector=node,
        updates_in_flight=True,
        worker=FarWorker,
        monitor=monitor,
    )
    pool = ActorPool(
        name="verifier",
        size=judges.workers,
        spawn=spawn_verifier,
        prepare=None,
        max_restarts=judges.max_restarts,
        start_timeout_s=start_timeout_s,
        capacity=1,
        monitor=monitor,
    )
    verifiers = JudgingPool(pool, processes_per_worker=1, deadline_s=start_timeout_s, who="a verifier")
    try:
        await asyncio.gather(rollout.start(), verifiers.start())
        yield FarPools(rollout=rollout, verifiers=verifiers)
    finally:
        await rollout.close()
        await verifiers.close()
