"""Evaluation of the policy in the rollout pool."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from actors.messages import JudgedGroup, SampledGroup, SampleRequest
from actors.rollout.pool import RolloutPool
from actors.verifier.reward_pool import VerdictPools
from pipelines.training.deadlines import together
from pipelines.training.prompts import EncodedPrompts
from rlad.config import EvaluationConfig, RolloutConfig, RunConfig
from rlad.data.records import PromptRecord
from rlad.errors import DeadlineError, WorkerLostError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise

# A prompt whose worker was lost is asked again; one lost this often points at the prompt or the cluster.
_ATTEMPTS = 3


OnResponses = Callable[[PromptRecord, SampledGroup, JudgedGroup], None]


async def evaluate(
    rollout: RolloutPool,
    verifiers: VerdictPools,
    prompts: EncodedPrompts,
    config: RunConfig,
    *,
    label: str,
    on_prompt: Callable[[], None] = lambda: None,
) -> EvaluationSummary:
    """Sample and judge every evaluation prompt of a run. Arguments as in `evaluate_set`."""
    return await evaluate_set(
        rollout, verifiers, prompts, config.evaluation, config.rollout, label=label, on_prompt=on_prompt
    )


async def evaluate_set(
    rollout: RolloutPool,
    verifiers: VerdictPools,
    prompts: EncodedPrompts,
    settings: EvaluationConfig,
    engines: RolloutConfig,
    *,
    label: str,
    on_prompt: Callable[[], None] = lambda: None,
    on_responses: OnResponses | None = None,
) -> EvaluationSummary:
    """Sample and judge every prompt of a set.

    Args:
        engines: of the rollout pool.
        label: makes the requests' uids unique, for example `step-10`.
        on_prompt: called after each prompt, for a progress bar.
        on_responses: called with each prompt's judged responses, texts included, as they are finished.
    """
    # Twice what the engines decode at once keeps them busy; more would only wait there, with its deadline running.
    in_flight = asyncio.Semaphore(max(1, math.ceil(2 * engines.workers * engines.max_sequences / settings.samples)))
    with_texts = settings.samples > 1 or on_responses is not None  # one response needs no vote

    async def one(index: int) -> PromptResult:
        record = prompts.records[index]
        request = SampleRequest(
            uid=f"evaluation:{label}:{record.id}",
            attempt=0,
            prompt_id=record.id,
            task=record.task,
            answer=record.answer,
            prompt_ids=prompts.token_ids[index],
            num_responses=settings.samples,
            max_response_tokens=settings.max_response_tokens or engines.max_response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=None,
        )
        async with in_flight:
            sampled, judged = await sample_and_judge(rollout, verifiers, request, with_texts=with_texts)
        if on_responses is not None:
            on_responses(record, sampled, judged)
        on_prompt()
        return PromptResult(
            prompt_id=record.id,
            groups=_groups_of(record, settings.group_by),
            rewards=judged.rewards,
            response_tokens=sampled.response_lengths,
            num_truncated=sampled.num_truncated,
            answers=judged.answers,
        )

    return summarise(await together(*(one(index) for index in range(len(prompts.records)))))


@retry(
    retry=retry_if_exception_type((WorkerLostError, DeadlineError)), stop=stop_after_attempt(_ATTEMPTS), reraise=True
)
async def sample_and_judge(
    rollout: RolloutPool, verifiers: VerdictPools, request: SampleRequest, *, with_texts: bool = False
) -> tuple[SampledGroup, JudgedGroup]:
    """Sample one group that no ledger knows, and have it judged. It is asked for again where its worker is lost.

    Raises:
        WorkerLostError, DeadlineError: in every attempt.
    """
    sampled = await rollout.sample(request)
    judged = await verifiers.verify(
        sampled.group_ref, task=request.task, num_tokens=sum(sampled.response_lengths), with_texts=with_texts
    )
    return sampled, judged


def _groups_of(record: PromptRecord, group_by: str | list[str]) -> tuple[str, ...]:
    """The rows a prompt belongs to: a key's value, or key and value where there are several keys. A key that the prompt lacks gives no row."""
    columns = {**record.metadata, "task": record.task}
    if isinstance(group_by, str):
        return (str(columns[group_by]),)
    return tuple(f"{key} {columns[key]}" for key in group_by if key in columns)
