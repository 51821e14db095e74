"""Evaluation of the policy that the rollout pool holds."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from actors.messages import SampledGroup, SampleRequest, VerifierResult
from actors.rollout.pool import RolloutPool
from actors.verifier.reward_pool import VerdictPools
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.progress import RunProgress
from pipelines.run.telemetry import Telemetry
from pipelines.training.deadlines import together
from pipelines.training.pools import Pools
from rlad.config import EvaluationConfig, RolloutConfig
from rlad.data.records import PromptRecord
from rlad.errors import DeadlineError, WorkerLostError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise

# Attempts for a prompt whose worker was lost. More losses point at the prompt or the cluster.
_ATTEMPTS = 3

OnResponses = Callable[[PromptRecord, SampledGroup, VerifierResult], None]


class ScheduledEvaluation:
    """Evaluates the policy before the first step, after the last one, and every `evaluation.every_steps` steps."""

    def __init__(self, run: ResolvedRun, pools: Pools, telemetry: Telemetry, progress: RunProgress) -> None:
        self._run, self._pools, self._telemetry, self._progress = run, pools, telemetry, progress
        self.accuracy: float | None = None
        """Accuracy of the last evaluation, in [0, 1]; None before the first."""

    async def evaluate_if_due(self, step: int) -> None:
        """Evaluate the policy after `step` trained steps, if that is due and not recorded yet."""
        config, directory = self._run.config, self._run.directory
        every, total = config.evaluation.every_steps, config.training.steps
        is_due = step in (0, total) or (every and step % every == 0)
        if not is_due or directory.evaluation_at(step) is not None:
            return
        start, prompts = time.time(), self._run.evaluation_prompts
        with self._progress.phase(f"evaluating after step {step}", total=len(prompts.records)) as phase:
            summary = await evaluate_set(
                self._pools.rollout,
                self._pools.verifiers,
                prompts,
                config.evaluation,
                config.rollout,
                seed=config.seed,
                label=f"step-{step}",
                on_prompt=phase.advance,
            )
        self.accuracy = summary.overall.mean
        self._telemetry.add_span("evaluation", f"step {step}", start, time.time())
        self._telemetry.record_evaluation(step, summary, time.time() - start)


async def evaluate_set(
    rollout: RolloutPool,
    verifiers: VerdictPools,
    prompts: EncodedPrompts,
    settings: EvaluationConfig,
    engines: RolloutConfig,
    *,
    seed: int,
    label: str,
    on_prompt: Callable[[], None] = lambda: None,
    on_responses: OnResponses | None = None,
) -> EvaluationSummary:
    """Sample and judge every prompt of a set.

    Args:
        rollout: Samples the responses.
        verifiers: Judge them.
        prompts: Prompts of the set.
        settings: Settings of the set.
        engines: Settings of the rollout pool.
        seed: Seed of the responses. Every request has its own stream of random numbers, so the responses do not depend
            on the order in which requests arrive.
        label: Makes the requests' uids unique, for example `step-10`.
        on_prompt: Called after each prompt, for a progress bar.
        on_responses: Called with each prompt's judged responses, texts included.
    """
    # Twice the number of sequences that the engines decode at once keeps them busy. More would only queue there, with
    # its deadline running.
    in_flight = asyncio.Semaphore(max(1, math.ceil(2 * engines.workers * engines.max_sequences / settings.samples)))
    with_texts = settings.samples > 1 or on_responses is not None  # a single response needs no majority vote

    async def evaluate_prompt(index: int) -> PromptResult:
        record = prompts.records[index]
        uid = f"evaluation:{label}:{record.id}"
        request = evaluation_request(prompts, index, settings, engines, uid=uid, responses=settings.samples, seed=seed)
        async with in_flight:
            sampled, verified = await sample_and_judge(rollout, verifiers, request, with_texts=with_texts)
        if on_responses is not None:
            on_responses(record, sampled, verified)
        on_prompt()
        return PromptResult(
            prompt_id=record.id,
            groups=_table_rows(record, settings.group_by),
            rewards=verified.rewards,
            response_tokens=sampled.summary.response_lengths,
            num_truncated=sampled.summary.num_truncated,
            answers=verified.answers,
            is_judged=tuple(verified.verdicts.is_judged.tolist()),
        )

    return summarise(await together(*(evaluate_prompt(index) for index in range(len(prompts.records)))))


def evaluation_request(
    prompts: EncodedPrompts,
    index: int,
    settings: EvaluationConfig,
    engines: RolloutConfig,
    *,
    uid: str,
    responses: int,
    seed: int,
) -> SampleRequest:
    """Return the request for a number of responses to a prompt of a set, with the set's settings of sampling."""
    record = prompts.records[index]
    return SampleRequest(
        uid=uid,
        attempt=0,
        prompt_id=record.id,
        task=record.task,
        answer=record.answer,
        prompt_ids=prompts.token_ids[index],
        num_responses=responses,
        max_response_tokens=settings.max_response_tokens or engines.max_response_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
    )


again_if_worker_lost = retry(
    retry=retry_if_exception_type((WorkerLostError, DeadlineError)), stop=stop_after_attempt(_ATTEMPTS), reraise=True
)
"""Decorator that repeats a request whose worker was lost."""


@again_if_worker_lost
async def sample_and_judge(
    rollout: RolloutPool, verifiers: VerdictPools, request: SampleRequest, *, with_texts: bool = False
) -> tuple[SampledGroup, VerifierResult]:
    """Sample and judge one group that is not in a ledger. The request is repeated if its worker is lost.

    Raises:
        WorkerLostError, DeadlineError: In every attempt.
    """
    sampled = await rollout.sample(request)
    verified = await verifiers.verify(
        sampled.columns, task=request.task, num_tokens=sampled.summary.num_tokens, with_texts=with_texts
    )
    return sampled, verified


def _table_rows(record: PromptRecord, group_by: str | list[str]) -> tuple[str, ...]:
    """Return the table rows that a prompt counts in.

    With one key a row is named by the key's value, with several by key and value. A prompt that lacks a key has no row
    for it.
    """
    columns = {**record.metadata, "task": record.task}
    if isinstance(group_by, str):
        return (str(columns[group_by]),)
    return tuple(f"{key} {columns[key]}" for key in group_by if key in columns)
