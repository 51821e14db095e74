"""Actors of the scheduler benchmark; each sleeps for as long as its work would take.

A dozen processes on two cores import this file, so it must not import torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import ray

from actors.messages import GroupSummary, SampleRequest, VerifierResult, WeightsPublication
from actors.teacher.replica import Receipt
from pipelines.simulation.simulator import stand_in_result
from pipelines.simulation.stand_ins import DecodingSlots, Server, StandInLearner
from pipelines.simulation.workload import Lengths, Speeds
from rlad.contracts import WeightsManifest

GROUP_SIZE = 16
LENGTHS = Lengths(median=100, p99_over_median=10, longest=1100, group_size=GROUP_SIZE)
# Sized so that learner and teacher can overlap with generation: they take two thirds and half of its time.
SPEEDS = Speeds(
    token_s=0.25e-3, slots=4, teacher_token_s=8e-6, verdict_s=8e-3, learner_token_s=5e-6, update_s=15e-3, weights_s=8e-3
)
AT_ONCE = Speeds(
    token_s=0.0, slots=4, teacher_token_s=0.0, verdict_s=0.0, learner_token_s=0.0, update_s=0.0, weights_s=0.0
)
# A stand-in derives its speeds from the task of the group.
SPEEDS_BY_TASK = {"timed": SPEEDS, "at_once": AT_ONCE}


@dataclass(frozen=True, slots=True)
class StandInGroup:
    """Replacement of a group's columns."""

    task: str
    lengths: tuple[int, ...]

    @property
    def speeds(self) -> Speeds:
        return SPEEDS_BY_TASK[self.task]


class StandInWorker:
    """Rollout worker whose engine sleeps, with the methods of `RolloutWorker`."""

    def __init__(self, *_: object) -> None:
        self._engines = {task: DecodingSlots(speeds) for task, speeds in SPEEDS_BY_TASK.items()}
        self._version = 0

    async def start(self) -> int:
        return 0

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, StandInGroup]:
        lengths, version = LENGTHS.of_group(request.uid), self._version
        await self._engines[request.task].decode(lengths)
        summary = GroupSummary(
            uid=request.uid,
            attempt=request.attempt,
            prompt_tokens=len(request.prompt_ids),
            response_lengths=lengths,
            is_truncated=(False,) * len(lengths),
            tokens_by_version={version: sum(lengths)},
        )
        return summary, StandInGroup(request.task, lengths)

    async def update_weights(self, publication: WeightsPublication) -> WeightsManifest:
        await asyncio.sleep(SPEEDS.weights_s)
        self._version = publication.manifest.version
        return publication.manifest

    async def close(self) -> None:
        pass


class StandInVerifier:
    """Verifier that sleeps."""

    def verify(self, group: StandInGroup, with_texts: bool) -> VerifierResult:
        time.sleep(group.speeds.verdict_s)
        return stand_in_result(len(group.lengths), elapsed_s=group.speeds.verdict_s)


class StandInLearners:
    """Learners of all runs, of which one works at a time."""

    async def run(self, broker: Any, task: str, steps: int) -> None:
        await StandInLearner(broker, LENGTHS, SPEEDS_BY_TASK[task]).run(steps)


class StandInTeacherServer:
    """Teacher replica that sleeps, with the methods of `TeacherServer`."""

    def __init__(self) -> None:
        self._engine = Server()

    async def score(
        self, group_refs: list[Any], tokenizer_fingerprint: str, support: Any = None, client: str = ""
    ) -> AsyncIterator[Any]:
        group: StandInGroup = await group_refs[0]
        tokens = sum(group.lengths)
        await self._engine.work(tokens * group.speeds.teacher_token_s)
        yield None
        yield Receipt(num_tokens=tokens, teacher="stand-in")
