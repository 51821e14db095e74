"""One run of the real step pipeline over stand-ins, shared by the simulator and the scheduler benchmark."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.resolution.prompts import EncodedPrompts
from pipelines.training.broker_client import BrokerClient
from pipelines.training.group_pipeline import (
    GroupPipeline,
    GroupServices,
    GroupSettings,
    GroupVerifier,
    Sampler,
    Scorer,
)
from pipelines.training.step_pipeline import (
    Clock,
    PromptScheduler,
    StepPipeline,
    TrainedStep,
    TrainingSet,
    UpdateWeights,
)
from rlad.config import RunConfig
from rlad.data.records import PromptRecord

TASK = "stand_in"
# No deadline: a step of a simulated 30K-token run takes virtual hours, and a benchmark ends by itself.
_TIMEOUT_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInPools:
    """Stand-in pools that groups pass through. Without a teacher the run is GRPO."""

    rollout: Sampler
    verifiers: GroupVerifier
    teacher: Scorer | None
    update_weights: UpdateWeights


def stand_in_prompts(count: int, *, task: str = TASK) -> EncodedPrompts:
    """Return prompts of one token, for stand-ins that do not read them."""
    tokens = np.zeros(1, np.int32)
    records = [PromptRecord(id=f"p{number}", prompt="-", task=task, answer="-") for number in range(count)]
    return EncodedPrompts(records=records, token_ids=[tokens] * count)


def group_uids(config: RunConfig, prompts: EncodedPrompts) -> list[str]:
    """Return the uids of all groups of a run, in order."""
    scheduler = PromptScheduler(_training_set(config, prompts), seed=config.seed)
    return [scheduler.take()[0] for _ in range(config.training.steps * config.training.prompts_per_step)]


async def run_steps(
    config: RunConfig, prompts: EncodedPrompts, pools: StandInPools, broker: Any, *, clock: Clock
) -> list[TrainedStep]:
    """Run all steps of a run. Its learner must have been started; it is awaited.

    Args:
        config: The run's configuration.
        prompts: Stand-in prompts.
        pools: Stand-in pools.
        broker: Handle of an `ExperienceBroker`.
        clock: Clock of all recorded times, seconds.

    Returns:
        The trained steps, in order.
    """
    async with open_pipeline(config, prompts, pools, broker, clock=clock) as (pipeline, first):
        return [await pipeline.train_step(step) for step in range(first, config.training.steps)]


@asynccontextmanager
async def open_pipeline(
    config: RunConfig, prompts: EncodedPrompts, pools: StandInPools, broker: Any, *, clock: Clock
) -> AsyncIterator[tuple[StepPipeline, int]]:
    """Open the step pipeline of a run, whose learner must have been started; it is awaited.

    Args:
        config: The run's configuration.
        prompts: Stand-in prompts.
        pools: Stand-in pools.
        broker: Handle of an `ExperienceBroker`.
        clock: Clock of all recorded times, seconds.

    Yields:
        The pipeline and the first step to train.
    """
    client = BrokerClient(handle=broker)
    training_set = _training_set(config, prompts)
    started = await client.wait_started(deadline_s=_TIMEOUT_S)
    scheduler = PromptScheduler(training_set, seed=config.seed, used=await client.reopen(started.version))
    teachers = {"teacher": pools.teacher} if pools.teacher is not None else {}
    mixture = dict.fromkeys(teachers, 1.0)
    source = GroupPipeline(
        GroupSettings.of(config),
        prompts,
        {record.id: mixture for record in prompts.records},
        scheduler=scheduler,
        broker=client,
        services=GroupServices(sampler=pools.rollout, verifier=pools.verifiers, teachers=teachers, reference=None),
        clock=clock,
    )
    pipeline = StepPipeline(
        config.training,
        training_set,
        scheduler=scheduler,
        broker=client,
        source=source,
        update_weights=pools.update_weights,
        step_timeout_s=_TIMEOUT_S,
        clock=clock,
    )
    async with pipeline.open(started):
        yield pipeline, started.version


def _training_set(config: RunConfig, prompts: EncodedPrompts) -> TrainingSet:
    return TrainingSet(
        fingerprint="stand-in",
        prompt_ids=[record.id for record in prompts.records],
        group_size=config.rollout.group_size,
        mixture=prompts.mixture,
    )
