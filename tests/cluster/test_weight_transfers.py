"""Weights that the learner sends straight to a pool's workers, over gloo: who gets which version, who joins late, who dies on the way."""

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

from .transfer_stand_ins import DyingWorker, StubLearner, StubWorker

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 3
DEADLINE_S = 60


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class Run:
    """A driver, with as little as an update of weights needs."""

    def __init__(self, folder: Path, *, workers: int, worker: type = StubWorker) -> None:
        policy = ShardPolicy(ranks=1, token_budget=1, skip_equal_rewards=True, skip_truncated=False)
        self.broker = ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(folder / "ledger.sqlite"), policy, 2)
        self.learner = self.new_learner()
        config = RolloutConfig(workers=workers, max_restarts=2)
        self.pool = RolloutPool(
            config, model_path="none", dtype="float32", seed=0, start_timeout_s=DEADLINE_S, run_id="test-transfers", worker=worker,
            transport=LearnerTransport("gloo", self.broker),
        )  # fmt: skip

    def new_learner(self) -> Any:
        return ray.remote(StubLearner).options(num_cpus=0).remote(self.broker)

    async def start(self) -> None:
        await asyncio.gather(self.pool.start(), self.learner.start.remote(0, STEPS))
        report = await self.poll("wait_started")
        await self.pool.update_weights(report.publications[0])

    async def finish_step(self, step: int) -> StepReport:
        """Let the learner make the next version, as it does when a step's groups are there."""
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
        group = ExperienceGroup(summary=summary, columns="group", verdicts=None, rewards=(0.0, 1.0))
        await self.broker.add.remote(step, group)
        return await self.poll("wait_finished", step)

    async def poll(self, method: str, *arguments: Any) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while (answer := await getattr(self.broker, method).remote(*arguments)) is None:
                pass
            return answer

    async def held(self, workers: int) -> dict[int, float]:
        """The one value in each worker's weights, by the worker's number."""
        columns = await self.samples(workers)
        for each in columns:
            assert len(each["values"]) == 3 * 4 + 4 + 4 * 2 + 2
            assert len(np.unique(each["values"])) == 1
        return {int(each["number"]): float(each["values"][0]) for each in columns}

    async def samples(self, workers: int) -> list[dict[str, np.ndarray]]:
        requests = [
            SampleRequest(
                uid=f"s{index}", attempt=0, prompt_id="p", task="t", answer="", prompt_ids=np.array([1], np.int32), num_responses=1,
                max_response_tokens=1, temperature=1.0, seed=None,
            )
            for index in range(workers)
        ]  # fmt: skip
        sampled = await asyncio.gather(*(self.pool.sample(each) for each in requests))
        return [await each.columns for each in sampled]

    async def ready(self, workers: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
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


async def test_workers_get_every_version_and_those_that_join_get_the_newest(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    assert await run.held(2) == {0: 0.0, 1: 0.0}
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    assert await run.held(2) == {0: 1.0, 1: 1.0}
    assert [int(each["joined"]) for each in await run.samples(2)] == [1, 1], "the same workers need no new group"

    run.pool.resize(3)  # the learner waits for the next step's groups, and has version 1
    await run.ready(3)
    assert await run.held(3) == {0: 1.0, 1: 1.0, 2: 1.0}

    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert await run.held(3) == {0: 2.0, 1: 2.0, 2: 2.0}

    await run.pool.update_weights((await run.finish_step(2)).publications[0])
    run.pool.resize(4)  # the learner has trained its last step, and waits to be dismissed
    await run.ready(4)
    assert await run.held(4) == {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0}


async def test_a_worker_that_dies_while_it_receives_never_serves_and_is_replaced(
    runs: list[Run], tmp_path: Path
) -> None:
    run = Run(tmp_path, workers=1, worker=DyingWorker)
    runs.append(run)
    await run.start()
    run.pool.resize(2)
    await run.ready(2)
    report = await run.finish_step(0)
    await run.pool.update_weights(report.publications[0])
    # Whoever was in the transfer and did not get everything is lost with it: none of them serves before it has it all.
    await run.ready(2)
    held = await run.held(2)
    assert set(held.values()) == {1.0}
    assert 1 not in held
    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert set((await run.held(2)).values()) == {2.0}


async def test_a_worker_that_is_gone_before_anything_is_sent_keeps_no_other_from_the_weights(
    runs: list[Run], tmp_path: Path
) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    [victim] = [each for each in await run.samples(2) if each["number"] == 0]
    os.kill(int(victim["pid"]), signal.SIGKILL)
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    assert (await run.held(1)).keys() == {1}, "it was not replaced"
    await run.ready(2)
    assert await run.held(2) == {1: 1.0, 2: 1.0}


async def test_a_learner_that_is_restarted_between_versions_sends_the_next_one_to_the_same_workers(
    runs: list[Run], tmp_path: Path
) -> None:
    run = Run(tmp_path, workers=2)
    runs.append(run)
    await run.start()
    await run.pool.update_weights((await run.finish_step(0)).publications[0])
    os.kill(await run.learner.pid.remote(), signal.SIGKILL)
    run.learner = run.new_learner()
    await run.learner.start.remote(
        0, STEPS
    )  # its checkpoint is of version 0; the driver has version 1 and asks for no older one
    await run.pool.update_weights((await run.finish_step(1)).publications[0])
    assert await run.held(2) == {0: 2.0, 1: 2.0}
