"""Training on traces: each trace is a group of one response, and passes once an epoch.

Broker, ledger, packing, learner, checkpoints and evaluation are those of every run.
"""

from __future__ import annotations

import time

import numpy as np
import ray

from actors.experience.group import ExperienceGroup
from actors.messages import GroupSummary
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.training.broker_client import BrokerClient
from pipelines.training.step_metrics import GroupRecord, GroupTimes, trace_metrics
from pipelines.training.step_pipeline import OpenStep, TrainedStep, TrainingSet
from rlad.contracts import FinishReason, RolloutGroup, Verdicts
from rlad.data.training_traces import TrainingTrace, TrainingTraces


def trace_training_set(traces: TrainingTraces, prompts: EncodedPrompts) -> TrainingSet:
    """Return the training set of traces: one entry, and one group of one response, a trace."""
    positions: list[int] = traces.prompt_positions.tolist()
    return TrainingSet(
        fingerprint=traces.fingerprint,
        prompt_ids=[prompts.records[position].id for position in positions],
        group_size=1,
        mixture=prompts.mixture and prompts.mixture.select(positions),
    )


class TraceGroups:
    """Reads groups from traces. Implements `GroupSource`."""

    def __init__(self, traces: TrainingTraces, prompts: EncodedPrompts, *, broker: BrokerClient) -> None:
        self._traces, self._prompts, self._broker = traces, prompts, broker

    async def submit_group(self, step: OpenStep, uid: str, attempt: int, entry: int) -> GroupRecord:
        """Read a trace as a group and add it to its step. See `GroupSource`."""
        issued_at = time.time()
        group, verdicts = group_of(self._traces[entry], self._prompts, uid=uid, attempt=attempt)
        experience = ExperienceGroup(
            summary=GroupSummary.of(group),
            columns=ray.put(group.to_columns()),
            verdicts=verdicts,
            rewards=tuple(verdicts.rewards.tolist()),
        )
        read_at = time.time()
        await self._broker.record_sampled(uid, attempt)
        await self._broker.add(step.number, experience)
        return GroupRecord(
            summary=experience.summary,
            task=group.task,
            verdicts=verdicts,
            worker="traces",
            times=GroupTimes(issued_at=issued_at, sampled_at=read_at, verified_at=read_at, scored_at=read_at),
            attempts=1,
        )

    def metrics(self, trained: TrainedStep) -> dict[str, float]:
        """Compute the metrics of a trained step. See `GroupSource`."""
        return trace_metrics(trained.groups, trained.times, trained.report.metrics)


def group_of(trace: TrainingTrace, prompts: EncodedPrompts, *, uid: str, attempt: int) -> tuple[RolloutGroup, Verdicts]:
    """Return a trace as a group of one response, at the temperature of its cross-entropy, with its verdict."""
    prompt = prompts.records[trace.prompt_position]
    group = RolloutGroup(
        uid=uid,
        attempt=attempt,
        prompt_id=prompt.id,
        task=prompt.task,
        answer=prompt.answer,
        temperature=1.0,
        prompt_ids=prompts.token_ids[trace.prompt_position],
        response_ids=trace.response_ids,
        response_offsets=np.array([0, len(trace.response_ids)], np.int64),
        behaviour_logprobs=trace.behaviour_logprobs,
        policy_versions=np.zeros(len(trace.response_ids), np.int32),
        finish_reasons=np.array([FinishReason.STOP], np.uint8),
    )
    verdicts = Verdicts(
        uid=uid,
        attempt=attempt,
        rewards=np.array([trace.reward], np.float32),
        outcomes=np.array([trace.outcome], np.uint8),
        elapsed_s=np.zeros(1, np.float32),
    )
    return group, verdicts
