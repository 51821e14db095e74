"""The distillation run: the picture in docs/design.md, from top to bottom.

    prompts -> rollout pool -> (teacher, verifiers) -> broker -> learner -> weights -> rollout pool

This process holds references and small numbers; token data goes from pool to pool through the object store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray
from rich.console import Console
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, stop_after_attempt

from actors.broker import ExperienceBroker, FinishedGroup, PartPolicy, StepReport
from actors.learner import LearnerGroup
from actors.parts import GroupRefs
from actors.rollout import SampleRequest
from pipelines.cluster import connected, require_room
from pipelines.evaluate import evaluate, require_group_key
from pipelines.model_card import write_model_card
from pipelines.pools import Pools, open_pools
from pipelines.progress import RunProgress, accuracy_table
from pipelines.prompts import EncodedPrompts, prepare_prompts, require_disjoint
from pipelines.report import write_report
from pipelines.run_directory import RunDirectory
from pipelines.step_metrics import FollowedGroup, StepTimes, step_metrics
from pipelines.telemetry import Telemetry
from pipelines.waiting import poll, together, unless, within
from rlad.config import RunConfig
from rlad.data.prompts import PromptOrder, dataset_fingerprint
from rlad.errors import DeadlineError, RunDirectoryError, WorkerLostError
from rlad.evaluation import EvaluationSummary
from rlad.starters import resolve_model

logger = logging.getLogger(__name__)

# A group that fails this often on different workers fails for its own reason: the run ends and says so.
_ATTEMPTS_PER_GROUP = 4
_BROKER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to: the evaluations of the student before and after."""

    run: RunDirectory
    before: EvaluationSummary
    after: EvaluationSummary


def distill(config: RunConfig, run: RunDirectory, *, resume: bool, console: Console) -> RunResult:
    """Run, or with `resume` continue, a distillation. Blocks until the student is exported.

    Raises:
        RladError: what went wrong, in one sentence; the run directory holds the last checkpoint.
    """
    with run.hold(config, resume=resume):
        student = str(resolve_model(config.student.path))
        prompts = prepare_prompts(config.prompts, config, student)
        evaluation_prompts = prepare_prompts(config.evaluation.prompts, config, student)
        require_disjoint(prompts, evaluation_prompts)
        require_group_key(evaluation_prompts, config.evaluation)
        result = finished_result(config, run)
        if result is not None:
            console.print(f"[green]✓[/] this run is finished: {config.training.steps} steps", highlight=False)
        else:
            result = _run_on_cluster(config, run, prompts, evaluation_prompts, console)
        write_report(run)
        write_model_card(run, before=result.before, after=result.after)
        columns = {"before": result.before, "after": result.after}
        console.print(accuracy_table("Accuracy of the student", columns, group_by=config.evaluation.group_label))
        console.print(f"student: {run.export}\nreport:  {run.report}", soft_wrap=True, highlight=False)
        return result


def finished_result(config: RunConfig, run: RunDirectory) -> RunResult | None:
    """The result of a run that has nothing left to do; None otherwise."""
    before, after = (run.evaluation_at(step) for step in (0, config.training.steps))
    return RunResult(run=run, before=before, after=after) if before and after and run.export.is_dir() else None


def _run_on_cluster(config: RunConfig, run: RunDirectory, prompts: EncodedPrompts, evaluation_prompts: EncodedPrompts, console: Console) -> RunResult:
    with connected(config.cluster) as resources, RunProgress(console, total_steps=config.training.steps) as progress:
        require_room(config, resources, "the cluster")
        asyncio.run(_Distillation(config, run, prompts, evaluation_prompts, progress).run())
    result = finished_result(config, run)
    if result is None:
        raise RunDirectoryError(f"{run.path} does not hold what the run has just written: was it changed meanwhile?")
    return result


class _Distillation:
    def __init__(
        self, config: RunConfig, run: RunDirectory, prompts: EncodedPrompts, evaluation_prompts: EncodedPrompts, progress: RunProgress
    ) -> None:
        self._config, self._run, self._progress = config, run, progress
        self._prompts, self._evaluation_prompts = prompts, evaluation_prompts
        self._order = PromptOrder(len(prompts.records), seed=config.seed)
        self._fingerprint = dataset_fingerprint(prompts.records)
        # Names Ray actors, Serve applications and shared memory: two runs of one name in two directories must not meet.
        self._run_id = f"{config.name}-{hashlib.sha256(str(run.path).encode()).hexdigest()[:8]}"
        self._broker: Any = None
        self._pools: Pools
        self._telemetry: Telemetry
        self._accuracy: float | None = None

    async def run(self) -> None:
        config = self._config
        policy = PartPolicy(
            ranks=config.learner.ranks,
            token_budget=config.learner.micro_batch_tokens,
            skip_equal_rewards=config.objective.zero_advantage_gives_zero_gradient,
            skip_truncated=config.learner.truncated == "mask",
        )
        self._broker = ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(self._run.ledger), policy, config.rollout.group_size)
        learner = LearnerGroup(config, run_dir=self._run.path, broker=self._broker, run_id=self._run_id)
        learner.start()
        try:
            await unless(learner.wait(), self._run_with(learner))
        except BaseException as error:
            await self._tell("stop", f"the driver ended: {type(error).__name__}")
            raise
        finally:
            await learner.close()

    async def _run_with(self, learner: LearnerGroup) -> None:
        config, total = self._config, self._config.training.steps
        async with AsyncExitStack() as closing:
            with self._progress.phase("starting rollout workers, teacher, verifiers and learner"):
                self._pools = await closing.enter_async_context(open_pools(config, run_id=self._run_id))
                started = await self._poll("wait_started", deadline_s=config.cluster.start_timeout_s, waiting_for="the learner to start")
            await self._tell("reopen", started.version)
            self._telemetry = Telemetry(self._run, start_step=started.version)
            closing.callback(self._telemetry.close)

            await self._pools.rollout.update_weights(started.publications[0])
            for step in range(started.version, total):
                await self._evaluate_if_due(step)
                await self._train(step)
            with self._progress.phase("exporting the student"):
                await within(learner.wait(), deadline_s=config.learner.step_timeout_s, waiting_for="the learner to export the student")
            await self._evaluate_if_due(total)

    async def _train(self, step: int) -> None:
        """One step: issue its groups, follow each to the broker, and hand the weights that the learner makes of them to the samplers."""
        training = self._config.training
        started_at = time.time()
        batch = self._order.batch(step, training.prompts_per_step)
        groups = [(f"{self._fingerprint}:{epoch}:{position}", record) for epoch, position, record in batch]
        size = training.prompts_per_step // training.updates_per_step
        named = [(uid, self._prompts.records[record].id) for uid, record in groups]
        attempts = await self._tell("open_step", step, [named[start : start + size] for start in range(0, len(named), size)])
        followed = await together(*(self._follow(step, self._request(uid, attempts[uid], record)) for uid, record in groups))
        report = await self._poll(
            "wait_finished", step, deadline_s=self._config.learner.step_timeout_s, waiting_for=f"the learner to finish step {step}"
        )
        trained_at = time.time()
        await self._pools.rollout.update_weights(report.publications[0])
        times = StepTimes(started_at=started_at, trained_at=trained_at, weights_at=time.time())
        self._record(step, followed, times, report)

    async def _follow(self, step: int, request: SampleRequest) -> FollowedGroup:
        """Bring one group from the sampler through teacher and verifier to the broker. A lost worker costs an attempt, not the run."""
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
        num_tokens = sum(sampled.response_lengths)
        teacher = self._pools.teacher
        _, judged, *scores = await together(
            self._tell("record_sampled", request.uid, request.attempt),
            self._pools.verifiers.verify(sampled.group_ref, num_tokens=num_tokens),
            *([teacher.score(sampled.group_ref, num_tokens=num_tokens)] if teacher else []),
        )
        finished = FinishedGroup(
            uid=request.uid,
            attempt=request.attempt,
            refs=GroupRefs(group=sampled.group_ref, verdicts=judged.verdicts_ref, teacher_scores=scores[0] if scores else None),
            prompt_tokens=sampled.prompt_tokens,
            response_lengths=sampled.response_lengths,
            is_truncated=sampled.is_truncated,
            rewards=judged.rewards,
        )
        scored_at = time.time()
        await self._tell("add", step, finished)
        return FollowedGroup(sampled=sampled, judged=judged, issued_at=issued_at, sampled_at=sampled_at, scored_at=scored_at, attempts=attempts)

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

    async def _evaluate_if_due(self, step: int) -> None:
        """Evaluate the policy that stands after `step` trained steps: before the first, after the last, and every so many between."""
        every, total = self._config.evaluation.every_steps, self._config.training.steps
        is_due = step in (0, total) or (every and step % every == 0)
        if not is_due or self._run.evaluation_at(step) is not None:
            return
        start = time.time()
        with self._progress.phase(f"evaluating after step {step}", total=len(self._evaluation_prompts.records)) as phase:
            summary = await evaluate(
                self._pools.rollout,
                self._pools.verifiers,
                self._evaluation_prompts,
                self._config,
                label=f"step-{step}",
                on_prompt=phase.advance,
            )
        self._accuracy = summary.overall.mean
        self._telemetry.add_span("evaluation", f"step {step}", start, time.time())
        self._telemetry.record_evaluation(step, summary, time.time() - start)

    def _record(self, step: int, groups: list[FollowedGroup], times: StepTimes, report: StepReport) -> None:
        metrics = step_metrics(groups, times, report.metrics)
        self._telemetry.record_step(step + 1, metrics)
        for group in groups:
            self._telemetry.add_span("rollout", group.sampled.uid, group.issued_at, group.sampled_at)
            self._telemetry.add_span("scoring", group.sampled.uid, group.sampled_at, group.scored_at)
        self._telemetry.add_span("learner (exposed)", f"step {step}", max(group.scored_at for group in groups), times.trained_at)
        self._telemetry.add_span("weights", f"version {step + 1}", times.trained_at, times.weights_at)
        self._progress.step(step + 1, metrics, self._accuracy)

    async def _tell(self, method: str, *arguments: object) -> Any:
        """Call the broker."""
        return await within(getattr(self._broker, method).remote(*arguments), deadline_s=_BROKER_TIMEOUT_S, waiting_for=f"the broker ({method})")

    async def _poll(self, method: str, *arguments: object, deadline_s: float, waiting_for: str) -> StepReport:
        return await poll(lambda: self._tell(method, *arguments), deadline_s=deadline_s, waiting_for=waiting_for)
