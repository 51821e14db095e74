"""Replacement of a slow rollout worker, with workers on a real Ray whose engines sleep."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from actors.engines.vllm_engine.settings import VllmSettings
from actors.messages import GroupSummary, SampledGroup, SampleRequest
from actors.rollout.pool import RolloutPool
from pipelines.simulation import DecodingSlots
from pipelines.simulation.workload import Speeds
from rlad.config import FailureConfig, RolloutConfig
from rlad.contracts import GenerationProgress
from rlad.errors import WorkerLostError

from .echo import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_GROUPS = 240
TOKENS = 50
WORKERS = 4
SLOW_FACTOR = 20
SLOW_SEED = 0
SPEEDS = Speeds(
    token_s=0.01, slots=4, teacher_token_s=0.0, verdict_s=0.0, learner_token_s=0.0, update_s=0.0, weights_s=0.0
)


class SleepingWorker:
    """Rollout worker whose engine sleeps. With `SLOW_SEED` it takes `SLOW_FACTOR` times as long for a token."""

    def __init__(self, settings: VllmSettings, run_id: str) -> None:
        self._factor = SLOW_FACTOR if settings.seed == SLOW_SEED else 1

    async def start(self) -> None:
        self._engine = DecodingSlots(replace(SPEEDS, token_s=self._factor * SPEEDS.token_s))

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, int]:
        lengths = (TOKENS,) * request.num_responses
        await self._engine.decode(lengths)
        summary = GroupSummary(
            uid=request.uid,
            attempt=request.attempt,
            prompt_tokens=len(request.prompt_ids),
            response_lengths=lengths,
            is_truncated=(False,) * len(lengths),
            tokens_by_version={0: sum(lengths)},
        )
        return summary, os.getpid()

    async def progress(self) -> GenerationProgress:
        return self._engine.progress()

    async def close(self) -> None:
        pass


def request(number: int, attempt: int) -> SampleRequest:
    return SampleRequest(
        uid=f"g{number}",
        attempt=attempt,
        prompt_id="p",
        task="t",
        answer="",
        prompt_ids=np.zeros(1, np.int32),
        num_responses=2,
        max_response_tokens=TOKENS,
        temperature=1.0,
        seed=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Groups that a pool sampled, the losses that its callers saw, and the time that it took."""

    groups: list[SampledGroup]
    losses: list[str]
    makespan_s: float


async def sample_all(pool: RolloutPool) -> Sampled:
    """Sample all groups. One whose worker is lost is issued again, as in a run."""
    losses: list[str] = []

    async def sample(number: int) -> SampledGroup:
        try:
            return await pool.sample(request(number, 0), priority=0)
        except WorkerLostError as error:
            losses.append(str(error))
            return await pool.sample(request(number, 1), priority=0)

    began = time.monotonic()
    async with asyncio.timeout(200):
        groups = await asyncio.gather(*map(sample, range(NUM_GROUPS)))
    return Sampled(groups=groups, losses=losses, makespan_s=time.monotonic() - began)


def make_pool(seed: int) -> RolloutPool:
    """Return a pool whose workers have seeds from `seed` on."""
    return RolloutPool(
        RolloutConfig(
            workers=WORKERS,
            max_restarts=1,
            max_sequences=SPEEDS.slots,
            group_size=2,
            max_response_tokens=TOKENS,
            cpus_per_worker=0.1,
        ),
        model_path="none",
        dtype="float32",
        seed=seed,
        start_timeout_s=60,
        run_id="test-slow",
        worker=SleepingWorker,
        failures=FailureConfig(heartbeat_s=0.2, slow_worker_window_s=1.0),
    )


async def test_slow_worker_is_replaced_its_groups_sampled_by_others_and_the_makespan_held(caplog: Any) -> None:
    """Four healthy workers take 15 s. A group takes 0.5 s on one of them, and 10 s on the slow one."""
    pool = make_pool(SLOW_SEED + 1)
    try:
        await pool.start()
        healthy = await sample_all(pool)
        assert (healthy.losses, pool.num_slow, len(pool._pool.workers())) == ([], 0, WORKERS)
    finally:
        await pool.close()

    pool = make_pool(SLOW_SEED)
    try:
        await pool.start()
        process = psutil.Process(await pool._pool.workers()["rollout-0"].__ray_call__.remote(lambda _: os.getpid()))
        slow = await sample_all(pool)
        ratio = slow.makespan_s / healthy.makespan_s
        print(f"makespan {healthy.makespan_s:.1f} s healthy, {slow.makespan_s:.1f} s slow, ratio {ratio:.2f}")
        assert slow.losses
        assert all("rollout-0 was lost" in loss for loss in slow.losses)
        assert sum(group.summary.attempt for group in slow.groups) == len(slow.losses)
        assert sorted(group.summary.uid for group in slow.groups) == sorted(f"g{each}" for each in range(NUM_GROUPS))
        assert "rollout-0" not in {group.worker for group in slow.groups}
        assert ratio <= 1.3
        assert any("worker=rollout-0 state=lost restarts_left=1 reason=it is slow" in each for each in caplog.messages)
        await asyncio.to_thread(process.wait, 30)  # killed by the pool
        await wait_until(lambda: pool.state().ready == WORKERS, "the replacement takes work")
        assert set(pool._pool.workers()) == {"rollout-1", "rollout-2", "rollout-3", "rollout-4"}
        assert pool.num_slow == 1
    finally:
        await pool.close()
