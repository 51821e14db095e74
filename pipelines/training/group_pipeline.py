"""The way of one group: sampled, then scored by teachers and judged by a verifier side by side, then handed to the broker.

Pools are what this file asks of them, whether engines are behind them or stand-ins that sleep.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol

from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, stop_after_attempt

from actors.experience.batch_shards import ColumnsRef, GroupRefs, WeightedScores
from actors.experience.broker import FinishedGroup
from actors.messages import JudgedGroup, SampledGroup, SampleRequest
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import together
from pipelines.training.prompts import EncodedPrompts
from pipelines.training.step_loop import Clock, OpenStep, PromptScheduler
from pipelines.training.step_metrics import FollowedGroup
from rlad.advantages import shaped_rewards
from rlad.config import RunConfig
from rlad.contracts import TeacherSupport
from rlad.errors import DeadlineError, WorkerLostError

logger = logging.getLogger(__name__)

# A group that fails this often on different workers fails for its own reason: the run ends and says so.
_ATTEMPTS_PER_GROUP = 4


class Samples(Protocol):
    """Samples groups, as `RolloutPool` does."""

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup: ...


class Judges(Protocol):
    """Judges groups, as `VerdictPools` does."""

    async def verify(self, group_ref: ColumnsRef, *, task: str, num_tokens: int) -> JudgedGroup: ...


class Scores(Protocol):
    """Scores groups, as `TeacherClient` does."""

    async def score(self, group_ref: ColumnsRef, *, num_tokens: int, support: TeacherSupport = None) -> ColumnsRef: ...


class GroupPipeline:
    """Brings groups of a distillation to the broker."""

    def __init__(
        self,
        config: RunConfig,
        prompts: EncodedPrompts,
        mixtures: Mapping[str, Mapping[str, float]],
        *,
        turns: PromptScheduler,
        broker: BrokerClient,
        rollout: Samples,
        verifiers: Judges,
        teachers: Mapping[str, Scores],
        reference: Scores | None,
        clock: Clock = time.time,
    ) -> None:
        """
        Args:
            mixtures: the teachers of every prompt, by its id: their ids and weights.
            turns: whoever takes the place of a dropped group comes from them.
            teachers: by id.
        """
        self._config, self._prompts, self._mixtures = config, prompts, mixtures
        self._turns, self._broker, self._clock = turns, broker, clock
        self._rollout, self._verifiers, self._teachers, self._reference = rollout, verifiers, teachers, reference

    async def bring(self, step: OpenStep, uid: str, attempt: int, record: int) -> FollowedGroup:
        """SubmitGroup one group of a step to the broker, or others in its place if it is dropped."""
        followed = await self._follow(step, self._request(uid, attempt, record))
        while followed.is_dropped:
            uid, record = self._turns.take()
            dropped = followed.sampled
            attempt = await self._broker.tell(
                "refill", step.number, dropped.uid, dropped.attempt, uid, self._prompts.records[record].id
            )
            followed = await self._follow(step, self._request(uid, attempt, record))
        return followed

    async def _follow(self, step: OpenStep, request: SampleRequest) -> FollowedGroup:
        """Follow one group to the broker. A lost worker costs an attempt, not the run."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((WorkerLostError, DeadlineError)),
            stop=stop_after_attempt(_ATTEMPTS_PER_GROUP),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                number = attempt.retry_state.attempt_number
                if number > 1:
                    request = replace(request, attempt=await self._broker.tell("reissue", request.uid))
                return await self._follow_once(step, request, number)
        raise AssertionError("tenacity raises the last error")

    async def _follow_once(self, step: OpenStep, request: SampleRequest, attempts: int) -> FollowedGroup:
        issued_at = self._clock()
        sampled = await self._rollout.sample(request, priority=step.number)
        sampled_at = self._clock()
        self._require_fresh(step, sampled)
        mixture = self._mixtures[request.prompt_id]

        def followed(*, judged: JudgedGroup, judged_at: float, is_dropped: bool) -> FollowedGroup:
            return FollowedGroup(
                sampled=sampled,
                judged=judged,
                issued_at=issued_at,
                sampled_at=sampled_at,
                judged_at=judged_at,
                scored_at=self._clock(),
                attempts=attempts,
                teachers=() if is_dropped else tuple(mixture),
                is_dropped=is_dropped,
            )

        recorded, judging = (
            self._broker.tell("record_sampled", sampled.uid, sampled.attempt),
            self._judge(sampled, request.task),
        )
        if self._config.training.max_refills:  # a group that is dropped is not worth a teacher's time
            _, (judged, judged_at) = await together(recorded, judging)
            if self._is_to_drop(step, sampled, judged):
                step.dropped.append(followed(judged=judged, judged_at=judged_at, is_dropped=True))
                return step.dropped[-1]
            scores = await together(*self._scoring(sampled, mixture))
        else:
            _, (judged, judged_at), *scores = await together(recorded, judging, *self._scoring(sampled, mixture))
        finished = FinishedGroup(
            uid=request.uid,
            attempt=request.attempt,
            refs=self._refs(sampled, judged, mixture, scores),
            prompt_tokens=sampled.prompt_tokens,
            response_lengths=sampled.response_lengths,
            is_truncated=sampled.is_truncated,
            rewards=self._rewards(sampled, judged),
        )
        await self._broker.tell("add", step.number, finished)
        return followed(judged=judged, judged_at=judged_at, is_dropped=False)

    def _require_fresh(self, step: OpenStep, sampled: SampledGroup) -> None:
        """The bound holds because of when a step is opened. A worker that breaks it has not the weights it should have."""
        oldest_allowed = step.number - self._config.training.max_staleness
        if sampled.oldest_version < oldest_allowed:
            raise WorkerLostError(
                f"{sampled.worker} sampled {sampled.uid} with weights of version {sampled.oldest_version}, step {step.number} takes none older than "
                f"{oldest_allowed}"
            )

    async def _judge(self, sampled: SampledGroup, task: str) -> tuple[JudgedGroup, float]:
        """The verdict, and when it was there."""
        judged = await self._verifiers.verify(sampled.group_ref, task=task, num_tokens=sum(sampled.response_lengths))
        return judged, self._clock()

    def _is_to_drop(self, step: OpenStep, sampled: SampledGroup, judged: JudgedGroup) -> bool:
        """Dynamic sampling (DAPO, arXiv:2503.14476): a group with equal rewards is dropped, up to so many a step."""
        rewards = self._rewards(sampled, judged)
        return min(rewards) == max(rewards) and len(step.dropped) < self._config.training.max_refills

    def _rewards(self, sampled: SampledGroup, judged: JudgedGroup) -> tuple[float, ...]:
        return tuple(shaped_rewards(judged.rewards, sampled.response_lengths, self._config.overlong_penalty).tolist())

    def _scoring(self, sampled: SampledGroup, mixture: Mapping[str, float]) -> list[Coroutine[Any, Any, ColumnsRef]]:
        """What scores the group: its teachers in their order, each for what the objective needs and nothing more, then the reference if there is one."""
        num_tokens, support = sum(sampled.response_lengths), self._config.objective.teacher_support
        teachers = [
            self._teachers[teacher].score(sampled.group_ref, num_tokens=num_tokens, support=support)
            for teacher in mixture
        ]
        return (
            teachers
            if self._reference is None
            else [*teachers, self._reference.score(sampled.group_ref, num_tokens=num_tokens)]
        )

    def _refs(
        self, sampled: SampledGroup, judged: JudgedGroup, mixture: Mapping[str, float], scores: list[ColumnsRef]
    ) -> GroupRefs:
        """Of a group with its scores in the order of `_scoring`."""
        of_reference = None if self._reference is None else scores.pop()
        of_teachers = tuple(
            WeightedScores(weight=weight, scores=ref) for weight, ref in zip(mixture.values(), scores, strict=True)
        )
        return GroupRefs(
            group=sampled.group_ref, verdicts=judged.verdicts, teacher_scores=of_teachers, reference_scores=of_reference
        )

    def _request(self, uid: str, attempt: int, record: int) -> SampleRequest:
        prompt, rollout = self._prompts.records[record], self._config.rollout
        return SampleRequest(
            uid=uid,
            attempt=attempt,
            prompt_id=prompt.id,
            task=prompt.task,
            answer=prompt.answer,
            prompt_ids=self._prompts.token_ids[record],
            num_responses=rollout.group_size,
            max_response_tokens=rollout.max_response_tokens,
            temperature=rollout.temperature,
            seed=None,
        )
