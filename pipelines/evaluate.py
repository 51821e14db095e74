"""Evaluation of the policy that the rollout pool holds, through the pool and the verifiers."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

from rich.console import Console
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from actors.rollout import RolloutPool, SampledGroup, SampleRequest
from actors.verifier import JudgedGroup, VerifierPool
from pipelines.cluster import connected
from pipelines.pools import open_pools
from pipelines.progress import RunProgress, accuracy_table
from pipelines.prompts import EncodedPrompts, prepare_prompts
from pipelines.waiting import together
from rlad.config import EvaluationConfig, RunConfig
from rlad.errors import ConfigError, DeadlineError, WorkerLostError
from rlad.evaluation import EvaluationSummary, PromptResult, summarise
from rlad.starters import resolve_model

# A prompt whose worker was lost is asked again; one lost this often points at the prompt or the cluster.
_ATTEMPTS = 3


def evaluate_model(config: RunConfig, console: Console) -> EvaluationSummary:
    """Evaluate the configuration's student as it is, on pools of its own, and print the table."""
    student = str(resolve_model(config.student.path))
    prompts = prepare_prompts(config.evaluation.prompts, config, student)
    require_group_key(prompts, config.evaluation)

    async def run() -> EvaluationSummary:
        async with AsyncExitStack() as closing:
            with progress.phase("starting rollout workers and verifiers"):
                pools = await closing.enter_async_context(open_pools(config, run_id=f"eval-{os.getpid()}", with_teacher=False))
            with progress.phase(f"evaluating {config.student.path}", total=len(prompts.records)) as phase:
                return await evaluate(pools.rollout, pools.verifiers, prompts, config, label="eval", on_prompt=phase.advance)

    with connected(config.cluster), RunProgress(console, total_steps=0) as progress:
        summary = asyncio.run(run())
    console.print(accuracy_table(f"Accuracy of {config.student.path}", {"accuracy": summary}, group_by=config.evaluation.group_by))
    return summary


def require_group_key(prompts: EncodedPrompts, config: EvaluationConfig) -> None:
    """Refuse an evaluation whose table cannot be made.

    Raises:
        ConfigError: a prompt lacks the metadata key that `group_by` names.
    """
    if config.group_by == "task":
        return
    for record in prompts.records:
        if config.group_by not in record.metadata:
            known = ", ".join(sorted(record.metadata)) or "none"
            raise ConfigError(f"evaluation.group_by is {config.group_by!r}, but prompt {record.id} has no such metadata (it has: {known})")


async def evaluate(
    rollout: RolloutPool,
    verifiers: VerifierPool,
    prompts: EncodedPrompts,
    config: RunConfig,
    *,
    label: str,
    on_prompt: Callable[[], None] = lambda: None,
) -> EvaluationSummary:
    """Sample and judge every evaluation prompt.

    Args:
        label: makes the requests' uids unique, for example `step-10`.
        on_prompt: called after each prompt, for a progress bar.
    """
    settings = config.evaluation
    # Twice what the engines decode at once keeps them busy; more would only wait there, with its deadline running.
    in_flight = asyncio.Semaphore(max(1, math.ceil(2 * config.rollout.workers * config.rollout.max_sequences / settings.samples)))

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
            max_response_tokens=settings.max_response_tokens or config.rollout.max_response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=None,
        )
        async with in_flight:
            sampled, judged = await sample_and_judge(rollout, verifiers, request)
        on_prompt()
        group = record.task if settings.group_by == "task" else str(record.metadata[settings.group_by])
        return PromptResult(
            prompt_id=record.id,
            group=group,
            rewards=judged.rewards,
            response_tokens=sampled.response_lengths,
            num_truncated=sampled.num_truncated,
        )

    return summarise(await together(*(one(index) for index in range(len(prompts.records)))))


@retry(retry=retry_if_exception_type((WorkerLostError, DeadlineError)), stop=stop_after_attempt(_ATTEMPTS), reraise=True)
async def sample_and_judge(rollout: RolloutPool, verifiers: VerifierPool, request: SampleRequest) -> tuple[SampledGroup, JudgedGroup]:
    """Sample one group that no ledger knows, and have it judged. It is asked for again where its worker is lost.

    Raises:
        WorkerLostError, DeadlineError: in every attempt.
    """
    sampled = await rollout.sample(request)
    judged = await verifiers.verify(sampled.group_ref, num_tokens=sum(sampled.response_lengths))
    return sampled, judged
