"""Evaluation of the policy that the rollout pool holds, through the pool and the verifiers."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import TextIO

from rich.console import Console
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from actors.messages import JudgedGroup, SampledGroup, SampleRequest
from actors.reward import VerdictPools
from actors.rollout import RolloutPool
from pipelines.cluster import connected
from pipelines.pools import open_pools
from pipelines.progress import RunProgress, evaluation_table
from pipelines.prompts import EncodedPrompts, prepare_prompts, require_group_key
from pipelines.run_directory import write_atomically
from pipelines.waiting import together
from rlad.config import EvaluationConfig, EvaluationSuite, RolloutConfig, RunConfig
from rlad.contracts import Outcome
from rlad.data.prompts import PromptRecord
from rlad.errors import DeadlineError, RunDirectoryError, WorkerLostError
from rlad.evaluation import EvaluationSummary, PromptResult, summarise
from rlad.starters import resolve_model

# A prompt whose worker was lost is asked again; one lost this often points at the prompt or the cluster.
_ATTEMPTS = 3

OnResponses = Callable[[PromptRecord, SampledGroup, JudgedGroup], None]


def evaluate_model(suite: EvaluationSuite, console: Console, *, output: Path | None = None) -> dict[str, EvaluationSummary]:
    """Evaluate the suite's student on each of its sets, on pools of its own, and print the tables.

    Args:
        output: directory for `evaluation.json`, the figures, and `responses-SET.jsonl`, every response with its text and reward.

    Returns:
        The figures by the set's name.

    Raises:
        RunDirectoryError: `output` holds an evaluation already, or is a file.
    """
    if output is not None:
        _make_room(output, suite)
    student = str(resolve_model(suite.student.path))
    prompts = {name: prepare_prompts(settings.prompts, suite, student) for name, settings in suite.sets.items()}
    for name, settings in suite.sets.items():
        require_group_key(prompts[name], settings)
    summaries: dict[str, EvaluationSummary] = {}

    async def run() -> None:
        async with AsyncExitStack() as closing:
            with progress.phase("starting rollout workers and verifiers"):
                pools = await closing.enter_async_context(open_pools(suite, run_id=f"eval-{os.getpid()}"))
            for name, settings in suite.sets.items():
                file = (output / f"responses-{name}.jsonl").open("w", encoding="utf-8") if output is not None else nullcontext()
                with file as responses, progress.phase(f"evaluating on {name}", total=len(prompts[name].records)) as phase:
                    summaries[name] = await evaluate_set(
                        pools.rollout,
                        pools.verifiers,
                        prompts[name],
                        settings,
                        suite.rollout,
                        label=name,
                        on_prompt=phase.advance,
                        on_responses=_writer(responses) if responses is not None else None,
                    )

    with connected(suite.cluster), RunProgress(console, total_steps=0) as progress:
        asyncio.run(run())
    for name, summary in summaries.items():
        console.print(evaluation_table(f"{suite.student.path} on {name}", summary, group_by=suite.sets[name].group_label))
    if output is not None:
        figures = {"model": suite.student.path, "sets": {name: summary.as_dict() for name, summary in summaries.items()}}
        write_atomically(output / "evaluation.json", json.dumps({**figures, "settings": suite.model_dump(mode="json")}, indent=2) + "\n")
    return summaries


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
    return await evaluate_set(rollout, verifiers, prompts, config.evaluation, config.rollout, label=label, on_prompt=on_prompt)


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


@retry(retry=retry_if_exception_type((WorkerLostError, DeadlineError)), stop=stop_after_attempt(_ATTEMPTS), reraise=True)
async def sample_and_judge(
    rollout: RolloutPool, verifiers: VerdictPools, request: SampleRequest, *, with_texts: bool = False
) -> tuple[SampledGroup, JudgedGroup]:
    """Sample one group that no ledger knows, and have it judged. It is asked for again where its worker is lost.

    Raises:
        WorkerLostError, DeadlineError: in every attempt.
    """
    sampled = await rollout.sample(request)
    judged = await verifiers.verify(sampled.group_ref, task=request.task, num_tokens=sum(sampled.response_lengths), with_texts=with_texts)
    return sampled, judged


def _groups_of(record: PromptRecord, group_by: str | list[str]) -> tuple[str, ...]:
    """The rows a prompt belongs to: a key's value, or key and value where there are several keys. A key that the prompt lacks gives no row."""
    columns = {**record.metadata, "task": record.task}
    if isinstance(group_by, str):
        return (str(columns[group_by]),)
    return tuple(f"{key} {columns[key]}" for key in group_by if key in columns)


def _writer(file: TextIO) -> OnResponses:
    """Writes a line a response, a prompt at a time."""

    def write(record: PromptRecord, sampled: SampledGroup, judged: JudgedGroup) -> None:
        assert judged.texts is not None
        for index, text in enumerate(judged.texts):
            line = {
                "prompt_id": record.id,
                "sample": index,
                "response": text,
                "answer": judged.answers[index] if judged.answers is not None else None,
                "reward": judged.rewards[index],
                "outcome": Outcome(judged.outcomes[index]).name.lower(),
                "tokens": sampled.response_lengths[index],
                "truncated": sampled.is_truncated[index],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


def _make_room(output: Path, suite: EvaluationSuite) -> None:
    if output.exists() and not output.is_dir():
        raise RunDirectoryError(f"{output} is a file: --output names a directory")
    there = [name for name in ("evaluation.json", *(f"responses-{name}.jsonl" for name in suite.sets)) if (output / name).exists()]
    if there:
        raise RunDirectoryError(f"{output} already holds {', '.join(there)}: choose another --output, or remove it")
    output.mkdir(parents=True, exist_ok=True)
