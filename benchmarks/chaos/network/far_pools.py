"""The real pools of rollout workers and verifiers on one node of a cluster, with actors in place of engines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import ray
from ray.actor import ActorHandle

from actors.experience.group import ColumnsRef
from actors.health.monitor import HeartbeatMonitor
from actors.messages import GroupSummary, SampleRequest, VerifierResult, WeightsPublication
from actors.pool.pool import ActorPool
from actors.rollout.pool import RolloutPool
from actors.verifier.pool import JudgingPool
from benchmarks.chaos.stand_in_run import filled_group
from pipelines.simulation.harness import StandInPools
from pipelines.simulation.simulator import stand_in_result
from rlad.config import RunConfig
from rlad.contracts import Columns, RolloutGroup, WeightsManifest

RESPONSE_TOKENS = 20_000
"""480 KiB for a group of two: above the 100 KiB up to which Ray sends an object with the answer of its call."""

# Time that a worker takes for a group, so that groups are in flight whenever a fault begins.
_SAMPLE_S, _JUDGE_S = 0.2, 0.05


class FarWorker:
    """Rollout worker that fills arrays, with the methods of `RolloutWorker`."""

    def __init__(self, *_: object) -> None:
        self._version = 0

    async def start(self) -> int:
        return os.getpid()

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, Columns]:
        version = self._version
        await asyncio.sleep(_SAMPLE_S)
        return filled_group(request, version, RESPONSE_TOKENS)

    async def update_weights(self, publication: WeightsPublication) -> WeightsManifest:
        self._version = publication.manifest.version
        return publication.manifest

    async def version(self) -> int:
        return self._version

    async def close(self) -> None:
        pass


class FarVerifier:
    """Verifier that reads the columns of a group and gives verdicts."""

    def verify(self, columns: Columns, with_texts: bool) -> VerifierResult:
        group = RolloutGroup.from_columns(columns)
        time.sleep(_JUDGE_S)
        result = stand_in_result(group.num_responses, elapsed_s=_JUDGE_S)
        return replace(result, verdicts=replace(result.verdicts, uid=group.uid, attempt=group.attempt))


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
