"""The distillation run: the picture in docs/design.md, from top to bottom.

    prompts -> rollout pool -> (teachers, verifiers) -> broker -> learner -> weights -> rollout pool

This process holds references and small numbers; token data goes from pool to pool through the object store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, stop_after_attempt

from actors.broker import FinishedGroup
from actors.parts import ColumnsRef, GroupRefs, WeightedScores
from actors.rollout import SampledGroup, SampleRequest
from actors.verifier import JudgedGroup
from pipelines.progress import RunProgress
from pipelines.prompts import EncodedPrompts, prepare_prompts
from pipelines.run_directory import RunDirectory
from pipelines.step_metrics import FollowedGroup
from pipelines.teachers import require_one_vocabulary, route_prompts
from pipelines.training_run import RunResult, TrainingRun, TrainingSet, complete, finished_result, prepare_evaluation, require_kind
from pipelines.waiting import together
from rlad.advantages import shaped_rewards
from rlad.config import RunConfig
from rlad.data.prompts import dataset_fingerprint
from rlad.errors import DeadlineError, WorkerLostError
from rlad.starters import resolve_model

logger = logging.getLogger(__name__)

# A group that fails this often on different workers fails for its own reason: the run ends and says so.
_ATTEMPTS_PER_GROUP = 4


def distill(config: RunConfig, run: RunDirectory, *, resume: bool, console: Console) -> RunResult:
    """Run, or with `resume` continue, a distillation. Blocks until the student is exported.

    Raises:
        RladError: what went wrong, in one sentence; the run directory holds the last checkpoint.
    """
    require_kind(config, offline=False)
    with run.hold(config, resume=resume):
        student = str(resolve_model(config.student.path))
        prompts = prepare_prompts(config.prompts, config, student)
        evaluation_prompts = prepare_evaluation(config, student, prompts)
        teachers = route_prompts(config, prompts.records)
        if finished_result(config, run) is None:
            require_one_vocabulary(config)
        return complete(config, run, console, lambda progress: _Distillation(config, run, prompts, evaluation_prompts, teachers, progress).run())


class _Distillation(TrainingRun):
    """The student's own responses, scored by teachers and judged by verifiers."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        prompts: EncodedPrompts,
        evaluation_prompts: EncodedPrompts,
        teachers: Mapping[str, Mapping[str, float]],
        progress: RunProgress,
    ) -> None:
        """
        Args:
            teachers: of every prompt, by its id: their ids and weights.
        """
        self._prompts = prompts
        self._teachers = teachers
        training_set = TrainingSet(
            fingerprint=dataset_fingerprint(prompts.records),
            prompt_ids=[record.id for record in prompts.records],
            group_size=config.rollout.group_size,
        )
        super().__init__(config, run, training_set, evaluation_prompts, progress)

    async def _bring(self, step: int, uid: str, attempt: int, record: int) -> FollowedGroup:
        followed = await self._follow(step, self._request(uid, attempt, record))
        while followed.is_dropped:
            uid, record = self._take_turn()
            dropped = followed.sampled
            attempt = await self._tell("refill", step, dropped.uid, dropped.attempt, uid, self._training_set.prompt_ids[record])
            followed = await self._follow(step, self._request(uid, attempt, record))
        return followed

    async def _follow(self, step: int, request: SampleRequest) -> FollowedGroup:
        """Bring one group from the sampler through teachers and verifier to the broker. A lost worker costs an attempt, not the run."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((WorkerLostError, DeadlineError)),
            stop=stop_after_attempt(_ATTEMPTS_PER_GROUP),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                number = attempt.retry_state.attempt_number
                if number > 1:
                    request = replace(request, attempt=await self._tell("reissue", request.uid))
                return await self._follow_once(step, request, number)
        raise AssertionError("tenacity raises the last error")

    async def _follow_once(self, step: int, request: SampleRequest, attempts: int) -> FollowedGroup:
        issued_at = time.time()
        sampled = await self._pools.rollout.sample(request)
        sampled_at = time.time()
        teachers = self._teachers[request.prompt_id]

        def followed(*, judged: JudgedGroup, is_dropped: bool) -> FollowedGroup:
            return FollowedGroup(
                sampled=sampled,
                judged=judged,
                issued_at=issued_at,
                sampled_at=sampled_at,
                scored_at=time.time(),
                attempts=attempts,
                teachers=() if is_dropped else tuple(teachers),
                is_dropped=is_dropped,
            )

        if self._config.training.max_refills:  # a group that is dropped is not worth a teacher's time
            judged = await self._judge(sampled, request.task)
            if self._is_to_drop(sampled, judged):
                self._dropped.append(followed(judged=judged, is_dropped=True))
                return self._dropped[-1]
            teacher_scores, reference_scores = await self._ask_scorers(sampled, teachers)
        else:
            judged, (teacher_scores, reference_scores) = await together(self._judge(sampled, request.task), self._ask_scorers(sampled, teachers))
        finished = FinishedGroup(
            uid=request.uid,
            attempt=request.attempt,
            refs=GroupRefs(group=sampled.group_ref, verdicts=judged.verdicts_ref, teacher_scores=teacher_scores, reference_scores=reference_scores),
            prompt_tokens=sampled.prompt_tokens,
            response_lengths=sampled.response_lengths,
            is_truncated=sampled.is_truncated,
            rewards=self._rewards(sampled, judged),
        )
        result = followed(judged=judged, is_dropped=False)
        await self._tell("add", step, finished)
        return result

    async def _judge(self, sampled: SampledGroup, task: str) -> JudgedGroup:
        judged: JudgedGroup
        _, judged = await together(
            self._tell("record_sampled", sampled.uid, sampled.attempt),
            self._pools.verifiers.verify(sampled.group_ref, task=task, num_tokens=sum(sampled.response_lengths)),
        )
        return judged

    def _is_to_drop(self, sampled: SampledGroup, judged: JudgedGroup) -> bool:
        """Dynamic sampling (DAPO, arXiv:2503.14476): a group with equal rewards is dropped, up to so many a step."""
        rewards = self._rewards(sampled, judged)
        return min(rewards) == max(rewards) and len(self._dropped) < self._config.training.max_refills

    def _rewards(self, sampled: SampledGroup, judged: JudgedGroup) -> tuple[float, ...]:
        return tuple(shaped_rewards(judged.rewards, sampled.response_lengths, self._config.overlong_penalty).tolist())

    async def _ask_scorers(self, sampled: SampledGroup, teachers: Mapping[str, float]) -> tuple[tuple[WeightedScores, ...], ColumnsRef | None]:
        """The scores of the group's teachers and of the reference, where the objective needs them."""
        teacher_scores, reference_scores = await together(self._ask_teachers(sampled, teachers), self._ask_reference(sampled))
        return teacher_scores, reference_scores

    async def _ask_teachers(self, sampled: SampledGroup, teachers: Mapping[str, float]) -> tuple[WeightedScores, ...]:
        """What the objective needs of each of the group's teachers, and nothing more."""
        num_tokens, support = sum(sampled.response_lengths), self._config.objective.teacher_support
        clients = [self._pools.teachers[teacher] for teacher in teachers]
        scores = await together(*(client.score(sampled.group_ref, num_tokens=num_tokens, support=support) for client in clients))
        return tuple(WeightedScores(weight=weight, scores=ref) for weight, ref in zip(teachers.values(), scores, strict=True))

    async def _ask_reference(self, sampled: SampledGroup) -> ColumnsRef | None:
        reference = self._pools.reference
        return None if reference is None else await reference.score(sampled.group_ref, num_tokens=sum(sampled.response_lengths))

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
