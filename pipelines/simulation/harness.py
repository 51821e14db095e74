"""One run of the real steps over stand-ins, wherever these are: what the simulator and the scheduler benchmark have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.messages import WeightsPublication
from pipelines.training.broker_client import BrokerClient
from pipelines.training.group_pipeline import GroupPipeline, Judges, Samples, Scores
from pipelines.training.prompts import EncodedPrompts
from pipelines.training.step_loop import Clock, PromptScheduler, StepHooks, Steps, TrainedStep, TrainingSet
from rlad.config import RunConfig
from rlad.data.records import PromptRecord

TASK = "stand_in"
# A step of a simulated 30K-token run takes virtual hours, a benchmark's not a second: neither may end by this.
_TIMEOUT_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInPools:
    """The pools that groups pass through. No teacher: the run is GRPO."""

    rollout: Samples
    verifiers: Judges
    teacher: Scores | None
    update_weights: Callable[[WeightsPublication], Awaitable[None]]


def stand_in_prompts(count: int, *, task: str = TASK) -> EncodedPrompts:
    """Prompts that nobody reads."""
    tokens = np.zeros(1, np.int32)
    records = [PromptRecord(id=f"p{number}", prompt="-", task=task, answer="-") for number in range(count)]
    return EncodedPrompts(records=records, token_ids=[tokens] * count)


def group_names(config: RunConfig, prompts: EncodedPrompts) -> list[str]:
    """The names of all groups of a run, in their order."""
    turns = PromptScheduler(_training_set(config, prompts), seed=config.seed)
    return [turns.take()[0] for _ in range(config.training.steps * config.training.prompts_per_step)]


async def drive(
    config: RunConfig, prompts: EncodedPrompts, pools: StandInPools, broker: Any, *, clock: Clock
) -> list[TrainedStep]:
    """Take a run through its steps. The learner, which somebody else has started, is waited for.

    Args:
        broker: handle of an `ExperienceBroker`.

    Returns:
        What became of each step.
    """
    client = BrokerClient(handle=broker)
    training_set = _training_set(config, prompts)
    started = await client.poll("wait_started", deadline_s=_TIMEOUT_S, waiting_for="the stand-in learner")
    turns = PromptScheduler(training_set, seed=config.seed, used=await client.tell("reopen", started.version))
    teachers: Mapping[str, Scores] = {"teacher": pools.teacher} if pools.teacher is not None else {}
    mixture = dict.fromkeys(teachers, 1.0)
    follower = GroupPipeline(
        config,
        prompts,
        {record.id: mixture for record in prompts.records},
        turns=turns,
        broker=client,
        rollout=pools.rollout,
        verifiers=pools.verifiers,
        teachers=teachers,
        reference=None,
        clock=clock,
    )
    done: list[TrainedStep] = []

    async def before(step: int) -> None:
        await asyncio.sleep(0)

    async def after(step: TrainedStep) -> None:
        done.append(step)

    steps = Steps(
        config.training,
        training_set,
        turns=turns,
        broker=client,
        bring=follower.bring,
        update_weights=pools.update_weights,
        hooks=StepHooks(before=before, after=after),
        step_timeout_s=_TIMEOUT_S,
        clock=clock,
    )
    await steps.run(started)
    return done


def _training_set(config: RunConfig, prompts: EncodedPrompts) -> TrainingSet:
    return TrainingSet(
        fingerprint="stand-in",
        prompt_ids=[record.id for record in prompts.records],
        group_size=config.rollout.group_size,
    )
