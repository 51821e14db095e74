"""A run survives the death of its broker and the loss of a node that holds its groups."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster

from actors.experience.batch_shards import BatchShard
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ColumnsRef
from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult, WeightsPublication
from pipelines.simulation.harness import StandInPools, run_steps, stand_in_prompts
from pipelines.simulation.simulator import stand_in_shard_policy
from pipelines.training.deadlines import together
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import RunConfig, load_run_config
from rlad.contracts import Columns
from rlad.ledger import Ledger
from rlad.testing.records import make_group, make_verdicts

from .learner_thread import LearnerThread

SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
STEPS, PROMPTS, GROUP_SIZE = 4, 4, 2
# More than the 100 KiB up to which Ray keeps an object in the process that owns it.
TOKENS = 20_000


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    node = {
        "num_cpus": 1,
        "include_dashboard": False,
        "_system_config": {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000},
    }
    head = Cluster(initialize_head=True, connect=False, head_node_args=node)
    ray.init(address=head.address, log_to_driver=False, logging_level="ERROR")
    yield head
    ray.shutdown()
    head.shutdown()


@ray.remote(num_cpus=0)
class Mortal(ExperienceBroker):
    """Broker that tells its process id."""

    async def pid(self) -> int:
        return os.getpid()


@ray.remote
class Worker:
    """Samples groups on its node."""

    @ray.method(num_returns=2)
    def sample(self, request: SampleRequest, version: int) -> tuple[GroupSummary, Columns]:
        responses = [np.full(TOKENS, token).tolist() for token in range(request.num_responses)]
        group = make_group(responses, uid=request.uid, attempt=request.attempt, policy_version=version)
        return GroupSummary.of(group), group.to_columns()


class Sampler:
    """Samples on the workers in turn, except on those that are gone, and judges the groups."""

    def __init__(self, workers: dict[str, ActorHandle]) -> None:
        self.workers, self._turn, self._version = workers, 0, 0
        self._requests: dict[str, SampleRequest] = {}

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        self._turn += 1
        name = sorted(self.workers)[self._turn % len(self.workers)]
        summary, columns = self.workers[name].sample.remote(request, self._version)
        self._requests[columns.hex()] = request
        return SampledGroup(summary=await summary, columns=columns, worker=name)

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        """Judge a group without its columns: fetching them would copy them to the driver's node."""
        request = self._requests[columns.hex()]
        group = make_group([[1]] * GROUP_SIZE, uid=request.uid, attempt=request.attempt)
        return VerifierResult(verdicts=make_verdicts(group, [1.0, 0.0]), elapsed_s=0.0)

    async def update_weights(self, publication: WeightsPublication) -> None:
        self._version = publication.manifest.version


def run_config(*settings: str) -> RunConfig:
    return load_run_config(
        SMOKE,
        [
            f"training.steps={STEPS}",
            f"training.prompts_per_step={PROMPTS}",
            "training.updates_per_step=1",
            f"rollout.group_size={GROUP_SIZE}",
            "learner.ranks=1",
            f"learner.micro_batch_tokens={TOKENS + 100}",  # a group of two responses fills a shard
            *settings,
        ],
    )


async def train(config: RunConfig, broker: ActorHandle, sampler: Sampler, learner: LearnerThread) -> list[TrainedStep]:
    pools = StandInPools(rollout=sampler, verifiers=sampler, teacher=None, update_weights=sampler.update_weights)

    async def learn() -> None:
        learner.start()
        while learner.is_alive():
            await asyncio.sleep(0.05)
        if learner.error is not None:
            raise learner.error

    async def drive() -> list[TrainedStep]:
        steps = await run_steps(config, stand_in_prompts(100), pools, broker, clock=time.time)
        await broker.dismiss.remote()
        return steps

    async with asyncio.timeout(60):
        steps, _ = await together(drive(), learn())
    return steps


def require_complete(ledger: Path, learner: LearnerThread, steps: list[TrainedStep]) -> None:
    with closing(Ledger(ledger, read_only=True)) as book:
        counts = book.counts()
    assert (counts.lost, counts.duplicated, counts.trained_steps) == (0, 0, STEPS)
    assert counts.states["committed"] == STEPS * PROMPTS
    for step, groups in zip(steps, learner.trained, strict=True):
        assert sorted(groups) == sorted((group.summary.uid, group.summary.attempt) for group in step.groups)
    trained = [uid for groups in learner.trained for uid, _ in groups]
    assert len(set(trained)) == len(trained) == STEPS * PROMPTS


def start_broker(ledger: Path, config: RunConfig) -> ActorHandle:
    return Mortal.options(max_restarts=5).remote(str(ledger), stand_in_shard_policy(config), GROUP_SIZE)


@pytest.mark.engine
@pytest.mark.chaos
@pytest.mark.parametrize("staleness", [0, 1])
async def test_run_continues_when_its_broker_is_killed_in_mid_step(tmp_path: Path, staleness: int) -> None:
    """The learner continues with the shards that it has: the second of step 1 was claimed before the kill."""
    config = run_config(f"training.max_staleness={staleness}")
    ledger = tmp_path / "ledger.sqlite"
    broker = start_broker(ledger, config)
    pids: list[int] = []

    def kill_broker(shard: BatchShard) -> None:
        if (shard.step, shard.index) in ((1, 1), (2, 0)):
            pids.append(ray.get(broker.pid.remote()))
            os.kill(pids[-1], signal.SIGKILL)

    learner = LearnerThread(broker, steps=STEPS, on_shard=kill_broker)
    steps = await train(config, broker, Sampler({"head": Worker.options(num_cpus=0).remote()}), learner)
    pids.append(ray.get(broker.pid.remote()))
    assert len(set(pids)) == 3
    require_complete(ledger, learner, steps)
    ray.kill(broker)


async def test_groups_of_a_removed_node_are_sampled_again_for_their_step(tmp_path: Path, cluster: Cluster) -> None:
    """Half of the groups of step 1 lie on the node when it vanishes, while step 0 is trained."""
    node = cluster.add_node(num_cpus=1, resources={"spot": 1})
    # The groups of a step are one shard.
    config = run_config(
        "training.max_staleness=1", f"learner.micro_batch_tokens={PROMPTS * GROUP_SIZE * (TOKENS + 100)}"
    )
    ledger = tmp_path / "ledger.sqlite"
    broker = start_broker(ledger, config)
    workers = {
        "head": Worker.options(num_cpus=0).remote(),
        "spot": Worker.options(num_cpus=0, resources={"spot": 1}).remote(),
    }
    sampler = Sampler(workers)

    def remove_node(shard: BatchShard) -> None:
        if shard.step == 0 and "spot" in sampler.workers:
            deadline = time.monotonic() + 60
            while ray.get(broker.counts.remote())["scored"] < PROMPTS:  # the groups of step 1
                assert time.monotonic() < deadline
                time.sleep(0.05)
            del sampler.workers["spot"]
            cluster.remove_node(node, allow_graceful=False)

    learner = LearnerThread(broker, steps=STEPS, on_shard=remove_node)
    steps = await train(config, broker, sampler, learner)
    assert learner.lost == PROMPTS // 2
    assert sum(attempt for groups in learner.trained for _, attempt in groups) == learner.lost
    require_complete(ledger, learner, steps)
    ray.kill(broker)
