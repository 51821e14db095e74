"""A run survives the death of its broker and the loss of a node that holds its groups."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster

from actors.experience.batch_shards import BatchShard
from actors.messages import SampledGroup, SampleRequest
from benchmarks.chaos.learner_thread import LearnerThread
from benchmarks.chaos.stand_in_run import (
    GROUP_SIZE,
    ArraySampler,
    ArrayWorker,
    Counts,
    stand_in_config,
    start_broker,
    train,
)
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import RunConfig

STEPS, PROMPTS = 4, 4
# More than the 100 KiB up to which Ray keeps an object in the process that owns it.
TOKENS = 20_000
TIMEOUT_S = 240


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    node = {
        "num_cpus": 1,
        "include_dashboard": False,
        "_system_config": {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 15,
        },
    }
    head = Cluster(initialize_head=True, connect=False, head_node_args=node)
    ray.init(address=head.address, log_to_driver=False, logging_level="ERROR")
    yield head
    ray.shutdown()
    head.shutdown()


class HoldingSampler(ArraySampler):
    """Holds the last group of a step back until it is released."""

    def __init__(self, workers: dict[str, ActorHandle], *, step: int) -> None:
        super().__init__(workers)
        self._step, self._sampled = step, 0
        self.released = threading.Event()

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        if priority == self._step:
            self._sampled += 1
            while self._sampled == PROMPTS and not self.released.is_set():
                await asyncio.sleep(0.01)
        return await super().sample(request, priority=priority)


def run_config(*settings: str) -> RunConfig:
    return stand_in_config(steps=STEPS, prompts_per_step=PROMPTS, response_tokens=TOKENS, settings=settings)


def start_worker(**options: Any) -> ActorHandle:
    return ray.remote(ArrayWorker).options(num_cpus=0, **options).remote(TOKENS)


def require_complete(ledger: Path, learner: LearnerThread, steps: list[TrainedStep]) -> None:
    assert Counts.of(ledger) == Counts(steps=STEPS, committed=STEPS * PROMPTS, lost=0, twice=0)
    for step, groups in zip(steps, learner.trained, strict=True):
        assert sorted(groups) == sorted((group.summary.uid, group.summary.attempt) for group in step.groups)
    trained = [uid for groups in learner.trained for uid, _ in groups]
    assert len(set(trained)) == len(trained) == STEPS * PROMPTS


@pytest.mark.engine
@pytest.mark.chaos
@pytest.mark.parametrize("staleness", [0, 1])
async def test_run_continues_when_its_broker_is_killed_in_mid_step(tmp_path: Path, staleness: int) -> None:
    """The learner continues with the shards that it has: the second of step 1 was claimed before the kill."""
    config = run_config(f"training.max_staleness={staleness}")
    ledger = tmp_path / "ledger.sqlite"
    broker = start_broker(ledger, config)
    # Without the hold, all groups of step 1 may arrive before its first claim, and it has one shard.
    sampler = HoldingSampler({"head": start_worker()}, step=1)
    pids: list[int] = []

    def kill_broker(shard: BatchShard) -> None:
        if (shard.step, shard.index) == (1, 0):
            sampler.released.set()
        if (shard.step, shard.index) in ((1, 1), (2, 0)):
            pids.append(ray.get(broker.pid.remote()))
            os.kill(pids[-1], signal.SIGKILL)

    learner = LearnerThread(broker, steps=STEPS, on_shard=kill_broker)
    steps: list[TrainedStep] = []
    await train(config, broker, sampler, learner, on_step=steps.append, timeout_s=TIMEOUT_S)
    pids.append(ray.get(broker.pid.remote()))
    assert len(set(pids)) == 3
    require_complete(ledger, learner, steps)
    ray.kill(broker)


async def test_groups_of_a_removed_node_are_sampled_again_for_their_step(tmp_path: Path, cluster: Cluster) -> None:
    """Half of the groups of step 1 lie on the node when it vanishes, while step 0 is trained."""
    # The groups of a step are one shard.
    config = run_config(
        "training.max_staleness=1", f"learner.micro_batch_tokens={PROMPTS * GROUP_SIZE * (TOKENS + 100)}"
    )
    ledger = tmp_path / "ledger.sqlite"
    broker, head_worker = start_broker(ledger, config), start_worker()
    # They must not be placed on the node that is removed.
    ray.get([broker.pid.remote(), head_worker.__ray_ready__.remote()], timeout=TIMEOUT_S)
    node = cluster.add_node(num_cpus=1, resources={"spot": 1})
    sampler = ArraySampler({"head": head_worker, "spot": start_worker(resources={"spot": 1})})

    def remove_node(shard: BatchShard) -> None:
        if shard.step == 0 and "spot" in sampler.workers:
            deadline = time.monotonic() + TIMEOUT_S
            while ray.get(broker.counts.remote())["scored"] < PROMPTS:  # the groups of step 1
                assert time.monotonic() < deadline
                time.sleep(0.05)
            del sampler.workers["spot"]
            cluster.remove_node(node, allow_graceful=False)

    learner = LearnerThread(broker, steps=STEPS, on_shard=remove_node)
    steps: list[TrainedStep] = []
    await train(config, broker, sampler, learner, on_step=steps.append, timeout_s=TIMEOUT_S)
    assert learner.lost == PROMPTS // 2
    assert sum(attempt for groups in learner.trained for _, attempt in groups) == learner.lost
    require_complete(ledger, learner, steps)
    ray.kill(broker)
