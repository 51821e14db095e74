"""The path of one group: sampled, then scored by teachers and judged by a verifier concurrently, then sent to the
broker.

The pools are given by protocols: real engines, or stand-ins that only take time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from actors.experience.group import ColumnsRef, ExperienceGroup, WeightedScores
from actors.messages import SampledGroup, SampleRequest, VerifierResult
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import together
from pipelines.training.step_metrics import GroupRecord, GroupTimes, sampling_metrics
from pipelines.training.step_pipeline import Clock, OpenStep, PromptScheduler, TrainedStep
from rlad.advantages import OverlongPenalty, shaped_rewards
from rlad.config import RolloutConfig, RunConfig
from rlad.contracts import Array, TeacherSupport
from rlad.errors import RladError, WorkerLostError
from rlad.failures import Action, Event, decide, event_of_attempt

logger = logging.getLogger(__name__)


class Sampler(Protocol):
    """Samples groups, as `RolloutPool` does."""

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup: ...


class GroupVerifier(Protocol):
    """Judges groups, as `VerdictPools` does."""

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult: ...


class GroupLog(Protocol):
    """Logs groups without waiting, as `SampleLogger` does."""

    def add(self, step: int, group: ExperienceGroup, *, is_dropped: bool, worker: str) -> None: ...


class Scorer(Protocol):
    """Scores groups, as `TeacherClient` does."""

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ColumnsRef: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupServices:
    """The pools that a group passes through.

    Attributes:
        sampler: Samples the responses.
        verifier: Judges them.
        teachers: Teachers by id; empty if the objective uses none.
        reference: The reference policy; None if the objective uses none.
        samples: Logs the groups; None if the run logs none.
    """

    sampler: Sampler
    verifier: GroupVerifier
    teachers: Mapping[str, Scorer]
    reference: Scorer | None
    samples: GroupLog | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """Settings of a group's path.

    Attributes:
        rollout: The `rollout` section.
        max_group_attempts: How often a group is issued before it is abandoned.
        max_abandoned_groups: Maximum number of groups that the run abandons.
        max_refills: Groups with equal verifier rewards that may be dropped and replaced in a step.
        max_staleness: Versions that a token may be older than the weights it trains.
        teacher_support: Teacher scores that the run requests besides the sampled tokens'.
        overlong_penalty: Penalty on long responses; None without one.
    """

    rollout: RolloutConfig
    max_group_attempts: int
    max_abandoned_groups: int
    max_refills: int
    max_staleness: int
    teacher_support: TeacherSupport
    overlong_penalty: OverlongPenalty | None

    @classmethod
    def of(cls, config: RunConfig) -> GroupSettings:
        """Collect the settings from a run's configuration."""
        return cls(
            rollout=config.rollout,
            max_group_attempts=config.failures.max_group_attempts,
            max_abandoned_groups=config.failures.max_abandoned_groups,
            max_refills=config.training.max_refills,
            max_staleness=config.training.max_staleness,
            teacher_support=config.teacher_support,
            overlong_penalty=config.overlong_penalty,
        )


class _GroupFailedError(Exception):
    """Group that failed on every attempt, with the request and the error of the last one."""

    def __init__(self, request: SampleRequest, cause: RladError) -> None:
        super().__init__(str(cause))
        self.request, self.cause = request, cause


class GroupPipeline:
    """Produces groups of the student's own responses. Implements `GroupSource`."""

    def __init__(
        self,
        settings: GroupSettings,
        prompts: EncodedPrompts,
        teachers_by_prompt: Mapping[str, Mapping[str, float]],
        *,
        scheduler: PromptScheduler,
        broker: BrokerClient,
        services: GroupServices,
        teacher_prompts: Mapping[str, Mapping[str, Array]] = MappingProxyType({}),
        clock: Clock = time.time,
    ) -> None:
        """
        Args:
            settings: Settings of a group's path.
            prompts: Training prompts; an entry of the training set is an index into them.
            teachers_by_prompt: Teachers of every prompt, by prompt id: teacher ids with their weights.
            scheduler: Gives out groups that replace dropped ones.
            broker: Client of the broker.
            services: The pools.
            teacher_prompts: Prompts behind which privileged teachers score, int32 [P], by teacher id and prompt id.
            clock: Clock of all recorded times, seconds.
        """
        self._settings, self._prompts, self._teachers_by_prompt = settings, prompts, teachers_by_prompt
        self._scheduler, self._broker, self._services, self._clock = scheduler, broker, services, clock
        self._teacher_prompts = teacher_prompts
        self._abandoning = asyncio.Lock()  # the limit holds although groups fail at the same time

    async def submit_group(self, step: OpenStep, uid: str, attempt: int, entry: int) -> GroupRecord:
        """Produce a group, or others in its place while they are dropped or abandoned. See `GroupSource`."""
        request = self._request(uid, attempt, entry)
        while True:
            try:
                record = await self._produce(step, request)
            except _GroupFailedError as failed:
                request = await self._in_place_of_abandoned(step, failed)
                continue
            if not record.is_dropped:
                return record
            uid, entry = self._scheduler.take()
            dropped, prompt_id = record.summary, self._prompts.records[entry].id
            attempt = await self._broker.refill(step.number, dropped.uid, dropped.attempt, uid, prompt_id)
            step.entries[uid] = entry
            request = self._request(uid, attempt, entry)

    async def _in_place_of_abandoned(self, step: OpenStep, failed: _GroupFailedError) -> SampleRequest:
        """Abandon a group that failed on every attempt, and return the request of another one.

        Raises:
            RladError: The error of the last attempt, if the run has abandoned as many groups as it may.
        """
        abandoned, limit = failed.request, self._settings.max_abandoned_groups
        async with self._abandoning:
            happened = (await self._broker.counts())["abandoned"] + 1
            if decide(Event.GROUP_FAILED, happened=happened, budget=limit) is Action.END:
                logger.error("The run has abandoned %d groups, its limit (failures.max_abandoned_groups)", limit)
                raise failed.cause
            uid, entry = self._scheduler.take()
            prompt_id = self._prompts.records[entry].id
            attempt = await self._broker.replace_abandoned(
                step.number, abandoned.uid, abandoned.attempt, uid, prompt_id
            )
            step.entries[uid] = entry
        logger.warning("Abandoned group %s of prompt %s: %s", abandoned.uid, abandoned.prompt_id, failed.cause)
        step.abandoned.append(abandoned.uid)
        return self._request(uid, attempt, entry)

    def metrics(self, trained: TrainedStep) -> dict[str, float]:
        """Compute the metrics of a trained step. See `GroupSource`."""
        return sampling_metrics(
            trained.number,
            trained.groups,
            trained.times,
            trained.report.metrics,
            num_abandoned=trained.num_abandoned,
        )

    async def _produce(self, step: OpenStep, request: SampleRequest) -> GroupRecord:
        """Produce one group. A lost worker costs an attempt, not the run.

        Raises:
            _GroupFailedError: Every attempt failed.
        """
        for number in itertools.count(1):
            try:
                if number > 1:
                    request = replace(request, attempt=await self._broker.reissue(request.uid))
                return await self._produce_once(step, request, number)
            except RladError as error:
                repetitions = self._settings.max_group_attempts - 1
                action = decide(event_of_attempt(error), happened=number, budget=repetitions)
                if action is Action.DROP:
                    raise _GroupFailedError(request, error) from error
                if action is not Action.REISSUE:
                    raise
                logger.warning("group=%s attempt=%d state=failed reason=%s", request.uid, number, error)
        raise AssertionError("the policy ends the loop")

    async def _produce_once(self, step: OpenStep, request: SampleRequest, attempts: int) -> GroupRecord:
        issued_at = self._clock()
        sampled = await self._services.sampler.sample(request, priority=step.number)
        sampled_at = self._clock()
        self._require_fresh(step, sampled)
        summary, teachers = sampled.summary, self._teachers_by_prompt[request.prompt_id]

        async def verify() -> tuple[VerifierResult, float]:
            result = await self._services.verifier.verify(
                sampled.columns, task=request.task, num_tokens=summary.num_tokens
            )
            return result, self._clock()

        recording = self._broker.record_sampled(summary.uid, summary.attempt)
        if self._settings.max_refills:  # judge first: a dropped group needs no teacher scores
            _, (result, verified_at) = await together(recording, verify())
            rewards = self._shaped_rewards(sampled, result)
            is_dropped = self._is_droppable(step, result)
            scores = [] if is_dropped else await together(*self._scoring(sampled, request.prompt_id, teachers))
        else:
            scoring = self._scoring(sampled, request.prompt_id, teachers)
            _, (result, verified_at), *scores = await together(recording, verify(), *scoring)
            rewards, is_dropped = self._shaped_rewards(sampled, result), False
        experience = self._experience(sampled, result, rewards, {} if is_dropped else teachers, scores)
        if self._services.samples is not None:
            self._services.samples.add(step.number, experience, is_dropped=is_dropped, worker=sampled.worker)
        if not is_dropped:
            await self._broker.add(step.number, experience)
        record = GroupRecord(
            summary=summary,
            task=request.task,
            verdicts=result.verdicts,
            worker=sampled.worker,
            times=GroupTimes(
                issued_at=issued_at, sampled_at=sampled_at, verified_at=verified_at, scored_at=self._clock()
            ),
            attempts=attempts,
            teachers=() if is_dropped else tuple(teachers),
            is_dropped=is_dropped,
        )
        if is_dropped:
            step.dropped.append(record)
        return record

    def _require_fresh(self, step: OpenStep, sampled: SampledGroup) -> None:
        """Refuse tokens beyond the staleness bound. The order of opening steps guarantees it, so a worker that breaks
        it
        holds wrong weights."""
        oldest_allowed = step.number - self._settings.max_staleness
        if sampled.summary.oldest_version < oldest_allowed:
            raise WorkerLostError(
                f"{sampled.worker} sampled {sampled.summary.uid} with policy version {sampled.summary.oldest_version}, "
                f"step {step.number} accepts none older than {oldest_allowed}"
            )

    def _is_droppable(self, step: OpenStep, result: VerifierResult) -> bool:
        """Return whether dynamic sampling drops a group: its judged responses are equally correct, or none was judged.

        DAPO (arXiv:2503.14476, Eq. 11) decides by correctness, before the overlong penalty. With the penalty, a group
        of correct responses of different lengths would be kept, and trained on for its lengths alone.
        """
        judged = {reward for reward, judged in zip(result.rewards, result.verdicts.is_judged, strict=True) if judged}
        return len(judged) <= 1 and len(step.dropped) < self._settings.max_refills

    def _shaped_rewards(self, sampled: SampledGroup, result: VerifierResult) -> tuple[float, ...]:
        lengths = sampled.summary.response_lengths
        return tuple(shaped_rewards(result.rewards, lengths, self._settings.overlong_penalty).tolist())

    def _scoring(
        self, sampled: SampledGroup, prompt_id: str, teachers: Mapping[str, float]
    ) -> list[Coroutine[Any, Any, ColumnsRef]]:
        """Return the scoring calls of a group: its teachers in order, then the reference if there is one."""
        num_tokens, services, support = sampled.summary.num_tokens, self._services, self._settings.teacher_support
        calls = [
            services.teachers[teacher].score(
                sampled.columns,
                num_tokens=num_tokens,
                support=support,
                prompt_ids=self._teacher_prompts.get(teacher, {}).get(prompt_id),
            )
            for teacher in teachers
        ]
        if services.reference is not None:
            calls.append(services.reference.score(sampled.columns, num_tokens=num_tokens))
        return calls

    def _experience(
        self,
        sampled: SampledGroup,
        result: VerifierResult,
        rewards: tuple[float, ...],
        teachers: Mapping[str, float],
        scores: list[ColumnsRef],
    ) -> ExperienceGroup:
        """Assemble the group for the broker from its scores, in the order of `_scoring`. A dropped group has none."""
        reference_scores = scores.pop() if len(scores) > len(teachers) else None
        return ExperienceGroup(
            summary=sampled.summary,
            columns=sampled.columns,
            verdicts=result.verdicts,
            rewards=rewards,
            teacher_scores=tuple(
                WeightedScores(weight=weight, scores=ref) for weight, ref in zip(teachers.values(), scores, strict=True)
            ),
            reference_scores=reference_scores,
        )

    def _request(self, uid: str, attempt: int, entry: int) -> SampleRequest:
        prompt, rollout = self._prompts.records[entry], self._settings.rollout
        return SampleRequest(
            uid=uid,
            attempt=attempt,
            prompt_id=prompt.id,
            task=prompt.task,
            answer=prompt.answer,
            prompt_ids=self._prompts.token_ids[entry],
            num_responses=rollout.group_size,
            max_response_tokens=rollout.max_response_tokens,
            temperature=rollout.temperature,
            seed=None,
        )
