"""Direct weight transfers from a learner to the workers of a pool, over gloo, with late and dying workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import ray

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker, StepReport
from actors.experience.group import ExperienceGroup
from actors.messages import GroupSummary
from actors.rollout.pool import RolloutPool, SampleRequest
from actors.weights.transports import LearnerTransport
from rlad.config import RolloutConfig
from rlad.contracts import Verdicts

from .transfer_stand_ins import DyingWorker, StubLearner, StubWorker

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 3
# Time after which a wait fails. Each wait is for one event, which takes seconds on an idle machine.
STALL_TIMEOUT_S = 240


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class Run:
    """Minimal driver for weight updates."""

    def __init__(self, folder: Path, *, workers: int, worker: type = StubWorker) -> None:
        policy = ShardPolicy(ranks=1, token_budget=1, skip_equal_rewards=True, skip_truncated=False)
        self.broker = ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(folder / "ledger.sqlite"), policy, 2)
        self.learner = self.new_learner()
        config = RolloutConfig(workers=workers, max_restarts=2)
        self.pool = RolloutPool(
            config,
            model_path="none",
            dtype="float32",
            seed=0,
            start_timeout_s=STALL_TIMEOUT_S,
            run_id="test-transfers",
            worker=worker,
            transport=LearnerTransport("gloo", self.broker),
        )

    def new_learner(self) -> Any:
        return ray.remote(StubLearner).options(num_cpus=0).remote(self.broker)

    async def start(self) -> None:
        await asyncio.gather(self.pool.start(), self.learner.start.remote(0, STEPS))
        report = await self.poll("wait_started")
        await self.pool.update_weights(report.publications[0])

    async def finish_step(self, step: int) -> StepReport:
        """Add the group of a step, so that the learner publishes the next version."""
        await self.broker.open_step.remote(step, [[(f"g{step}", "prompt")]])
        await self.broker.record_sampled.remote(f"g{step}", 0)
        summary = GroupSummary(
            uid=f"g{step}",
            attempt=0,
            prompt_tokens=1,
            response_lengths=(1, 1),
            is_truncated=(False, False),
            tokens_by_version={0: 2},
        )
        verdicts = Verdicts(
            uid=f"g{step}",
            attempt=0,
            rewards=np.array([0, 1], np.float32),
            outcomes=np.array([1, 0], np.uint8),
            elapsed_s=np.zeros(2, np.float32),
        )
        group = ExperienceGroup(summary=summary, columns="group", verdicts=verdicts, rewards=(0.0, 1.0))
        await self.broker.add.remote(step, group)
        return await self.poll("wait_finished", step)

    async def poll(self, method: str, *arguments: Any) -> Any:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            while (answer := await getattr(self.broker, method).remote(*arguments)) is None:
                pass
            return answer

    async def held(self, workers: int) -> dict[int, float]:
        """Return the value of each worker's weights, which must all be equal, by the number of the worker."""
        samples = await self.samples(workers)
        for sample in samples:
            assert len(sample["values"]) == 3 * 4 + 4 + 4 * 2 + 2
            assert len(np.unique(sample["values"])) == 1
        return {int(sample["number"]): float(sample["values"][0]) for sample in samples}

    async def samples(self, workers: int) -> list[dict[str, np.ndarray]]:
        requests = [
            SampleRequest(
                uid=f"s{index}",
                attempt=0,
                prompt_id="p",
                task="t",
                answer="",
                prompt_ids=np.array([1], np.int32),
                num_responses=1,
                max_response_tokens=1,
                temperature=1.0,
                seed=None,
            )
            for index in range(workers)
        ]
        sampled = await asyncio.gather(*(self.pool.sample(request) for request in requests))
        return [await group.columns for group in sampled]

    async def ready(self, workers: int) -> None:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            while (state := self.pool.state()).ready != workers or state.starting:
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self.pool.close()
        for actor in (self.learner, self.broker):
            ray.kill(actor)


@pytest_asyncio.fixture(loop_scope="module")
async def runs() -> AsyncIterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        await run.close()


async def test_workers_receive_every_version_and_late_workers_the_newest(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    assert await run.held(2) == {0: 0.0, 1: 0.0}
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    assert await run.held(2) == {0: 1.0, 1: 1.0}
    assert [int(sample["joined"]) for sample in await run.samples(2)] == [1, 1], "the process group must be reused"

    run.pool.resize(3)  # the learner holds version 1 and waits for the groups of the next step
    await run.ready(3)
    assert await run.held(3) == {0: 1.0, 1: 1.0, 2: 1.0}

    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert await run.held(3) == {0: 2.0, 1: 2.0, 2: 2.0}

    await run.pool.update_weights((await run.finish_step(2)).publications[0])
    run.pool.resize(4)  # the learner has finished its last step and waits to be dismissed
    await run.ready(4)
    assert await run.held(4) == {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0}


async def test_worker_that_dies_during_a_transfer_is_replaced(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, workers=1, worker=DyingWorker)
    runs.append(run)
    await run.start()
    run.pool.resize(2)
    await run.ready(2)
    report = await run.finish_step(0)
    await run.pool.update_weights(report.publications[0])
    # The pool also drops workers of the failed transfer with partial weights. A worker samples with full weights only.
    await run.ready(2)
    held = await run.held(2)
    assert set(held.values()) == {1.0}
    assert 1 not in held
    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert set((await run.held(2)).values()) == {2.0}


async def test_worker_that_died_before_a_transfer_does_not_affect_the_others(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    [victim] = [sample for sample in await run.samples(2) if sample["number"] == 0]
    os.kill(int(victim["pid"]), signal.SIGKILL)
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    assert (await run.held(1)).keys() == {1}, "the surviving worker must keep running"
    await run.ready(2)
    assert await run.held(2) == {1: 1.0, 2: 1.0}


async def test_restarted_learner_transfers_the_next_version_to_the_same_workers(
    runs: list[Run], tmp_path: Path
) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    os.kill(await run.learner.pid.remote(), signal.SIGKILL)
    run.learner = run.new_learner()
    # Its checkpoint has version 0. The driver holds version 1 and requests no older one.
    await run.learner.start.remote(0, STEPS)
    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert await run.held(2) == {0: 2.0, 1: 2.0}
