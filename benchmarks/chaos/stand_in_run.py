"""Runs without engines on a real Ray cluster, for faults that need many steps or large groups.

The driver's step pipeline, the broker and the way of the data through the object store are real. Workers fill arrays
instead of sampling, verdicts are given, and the learner fetches the data of its batch shards and trains nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.experience.broker import ExperienceBroker
from actors.experience.group import ColumnsRef
from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult, WeightsPublication
from benchmarks.chaos.learner_thread import LearnerThread
from pipelines.simulation.harness import StandInPools, open_pipeline, stand_in_prompts
from pipelines.simulation.simulator import stand_in_result, stand_in_shard_policy
from pipelines.training.deadlines import together
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import RunConfig, load_run_config
from rlad.contracts import Columns, FinishReason, RolloutGroup
from rlad.ledger import GroupState, Ledger

_SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
GROUP_SIZE = 2
_PROMPTS = 100  # of an epoch
# Bytes of a token in the columns of a group: token id, log-probability and policy version.
TOKEN_BYTES = 12

OnStep = Callable[[TrainedStep], None]


class StandInBroker(ExperienceBroker):
    """Broker that tells its process id."""

    async def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


class ArrayWorker:
    """Fills groups on its node."""

    def __init__(self, response_tokens: int) -> None:
        """
        Args:
            response_tokens: Number of tokens of each response.
        """
        self._response_tokens = response_tokens

    @ray.method(num_returns=2)
    def sample(self, request: SampleRequest, version: int) -> tuple[GroupSummary, Columns]:
        """Fill one group. The summary and the columns become two objects."""
        offsets = np.arange(request.num_responses + 1, dtype=np.int64) * self._response_tokens
        tokens = int(offsets[-1])
        group = RolloutGroup(
            uid=request.uid,
            attempt=request.attempt,
            prompt_id=request.prompt_id,
            task=request.task,
            answer=request.answer,
            temperature=1.0,
            prompt_ids=request.prompt_ids,
            response_ids=np.ones(tokens, np.int32),
            response_offsets=offsets,
            behaviour_logprobs=np.full(tokens, -1.0, np.float32),
            policy_versions=np.full(tokens, version, np.int32),
            finish_reasons=np.full(request.num_responses, FinishReason.STOP, np.uint8),
        )
        return GroupSummary.of(group), group.to_columns()


class ArraySampler:
    """Samples on workers in turn and judges the groups. Stands for the rollout and the verifier pool.

    Attributes:
        workers: Workers by name; may change during the run.
    """

    def __init__(self, workers: dict[str, ActorHandle]) -> None:
        """
        Args:
            workers: Workers by name.
        """
        self.workers, self._turn, self._version = workers, 0, 0
        self._unjudged: dict[str, SampleRequest] = {}

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        """Sample a group on the next worker, and again where the worker is lost. See `GroupPipeline`."""
        while True:
            self._turn += 1
            name = sorted(self.workers)[self._turn % len(self.workers)]
            summary, columns = self.workers[name].sample.remote(request, self._version)
            try:
                sampled = SampledGroup(summary=await summary, columns=columns, worker=name)
            except ray.exceptions.RayActorError:
                await asyncio.sleep(0.1)
                continue
            self._unjudged[columns.hex()] = request
            return sampled

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        """Judge a group without its columns: fetching them would copy them to the driver's node."""
        request, result = self._unjudged.pop(columns.hex()), stand_in_result(GROUP_SIZE, elapsed_s=0.0)
        return replace(result, verdicts=replace(result.verdicts, uid=request.uid, attempt=request.attempt))

    async def update_weights(self, publication: WeightsPublication) -> None:
        """Load published weights."""
        self._version = publication.manifest.version

    def pools(self) -> StandInPools:
        """Return the pools that this object stands for."""
        return StandInPools(rollout=self, verifiers=self, teacher=None, update_weights=self.update_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts of the ledger of a run that has ended.

    Attributes:
        steps: Number of trained steps.
        committed: Number of groups in the last checkpoint.
        lost: Number of groups that were lost.
        twice: Number of groups that were trained on twice.
    """

    steps: int
    committed: int
    lost: int
    twice: int

    @classmethod
    def of(cls, path: Path) -> Counts:
        """Count a ledger."""
        with closing(Ledger(path, read_only=True)) as ledger:
            counts = ledger.counts()
        return cls(
            steps=counts.trained_steps,
            committed=counts.states[GroupState.COMMITTED],
            lost=counts.lost,
            twice=counts.duplicated,
        )


def stand_in_config(*, steps: int, prompts_per_step: int, response_tokens: int, settings: tuple[str, ...]) -> RunConfig:
    """Return the configuration of a run of stand-ins. A group of two responses fills a batch shard.

    Args:
        steps: Number of steps.
        prompts_per_step: Number of groups of a step.
        response_tokens: Number of tokens of each response.
        settings: Further settings as `key=value`.
    """
    return load_run_config(
        _SMOKE,
        [
            f"training.steps={steps}",
            f"training.prompts_per_step={prompts_per_step}",
            "training.updates_per_step=1",
            f"rollout.group_size={GROUP_SIZE}",
            "learner.ranks=1",
            f"learner.micro_batch_tokens={response_tokens + 100}",
            *settings,
        ],
    )


def start_broker(ledger: Path, config: RunConfig) -> ActorHandle:
    """Start a broker that Ray restarts."""
    broker = ray.remote(StandInBroker).options(num_cpus=0, max_restarts=5)
    return broker.remote(str(ledger), stand_in_shard_policy(config), GROUP_SIZE)


async def train(
    config: RunConfig,
    broker: ActorHandle,
    sampler: ArraySampler,
    learner: LearnerThread,
    *,
    on_step: OnStep,
    timeout_s: float,
) -> None:
    """Run all steps of a run.

    Args:
        config: The run's configuration.
        broker: The broker.
        sampler: The sampler.
        learner: The learner, not yet started.
        on_step: Called after each step.
        timeout_s: Deadline of the run, seconds.

    Raises:
        TimeoutError: The run did not end in time.
        RladError: The first error of the driver or of the learner.
    """

    async def learn() -> None:
        learner.start()
        while learner.is_alive():
            await asyncio.sleep(0.05)
        if learner.error is not None:
            raise learner.error

    async def drive() -> None:
        prompts = stand_in_prompts(_PROMPTS)
        async with open_pipeline(config, prompts, sampler.pools(), broker, clock=time.time) as (pipeline, first):
            for step in range(first, config.training.steps):
                on_step(await pipeline.train_step(step))
        await broker.dismiss.remote()

    async with asyncio.timeout(timeout_s):
        await together(drive(), learn())
