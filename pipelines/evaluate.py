"""`rlad eval`: evaluate a model with its own rollout and verifier pools."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from actors.messages import SampledGroup, VerifierResult
from actors.rollout.pool import RolloutPool
from actors.verifier.reward_pool import VerdictPools
from pipelines.cluster.connection import connected
from pipelines.cluster.node_models import starts_local_cluster
from pipelines.environment.requirements import require_packages
from pipelines.latency import measure_latency
from pipelines.resolution.models import ResolvedModels, resolve_models
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_group_key
from pipelines.run.downloads import fetch_here
from pipelines.run.progress import RunProgress, evaluation_table
from pipelines.training.evaluation import evaluate_set
from pipelines.training.pools import fetch_for_pools, open_evaluation_pools
from rlad.config import EvaluationSuite, LatencyConfig
from rlad.contracts import Outcome
from rlad.data.records import PromptRecord
from rlad.errors import RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.latency import Latency
from rlad.integrity.durable import write_atomically


class ResponseFile:
    """Writes one JSON line per response, in the order of the prompts.

    Two evaluations with the same seed write the same file. Groups that finish before an earlier prompt wait in memory;
    an evaluation that fails writes them too.
    """

    def __init__(self, path: Path, records: Sequence[PromptRecord]) -> None:
        self._path = path
        self._order = {record.id: place for place, record in enumerate(records)}
        self._waiting: dict[int, str] = {}
        self._next = 0

    def __enter__(self) -> ResponseFile:
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.writelines(self._waiting[place] for place in sorted(self._waiting))
        self._file.close()

    def add(self, record: PromptRecord, sampled: SampledGroup, judged: VerifierResult) -> None:
        """Write the responses to a prompt, or keep them until those to all earlier prompts are written."""
        self._waiting[self._order[record.id]] = _lines(record, sampled, judged)
        while self._next in self._waiting:
            self._file.write(self._waiting.pop(self._next))
            self._next += 1


def _lines(record: PromptRecord, sampled: SampledGroup, judged: VerifierResult) -> str:
    assert judged.texts is not None
    lines = (
        {
            "prompt_id": record.id,
            "sample": index,
            "response": text,
            "answer": judged.answers[index] if judged.answers is not None else None,
            "reward": judged.rewards[index],
            "outcome": Outcome(judged.outcomes[index]).name.lower(),
            "tokens": sampled.summary.response_lengths[index],
            "truncated": sampled.summary.is_truncated[index],
        }
        for index, text in enumerate(judged.texts)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def evaluate_model(
    suite: EvaluationSuite, console: Console, *, output: Path | None = None
) -> dict[str, EvaluationSummary]:
    """Evaluate the student of a suite on each evaluation set, and print the tables.

    Args:
        suite: Evaluation sets, and the model as `student`.
        output: Directory for `evaluation.json` (results, and the latency of the sets that measure it) and
            `responses-SET.jsonl` (text and reward of each response).

    Returns:
        Results by the name of the set.

    Raises:
        RunDirectoryError: `output` already holds an evaluation, or is a file.
        PlanError: The installed packages do not support the devices of the suite.
    """
    require_packages(suite)
    if output is not None:
        _require_free(output, suite)
    models = resolve_models(suite)
    student = fetch_here([models.student], console, weights=False)[models.student.location]
    prompts = {name: prepare_prompts(settings.prompts, suite, student) for name, settings in suite.sets.items()}
    for name, settings in suite.sets.items():
        require_group_key(prompts[name], settings)
    summaries: dict[str, EvaluationSummary] = {}
    latencies: dict[str, Latency] = {}

    async def run() -> None:
        async with AsyncExitStack() as closing:
            with progress.phase("starting rollout workers and verifiers"):
                rollout, verifiers = await closing.enter_async_context(
                    open_evaluation_pools(suite, models, run_id=f"eval-{os.getpid()}")
                )
            if output is not None:  # not before the engines run, so that a failed start leaves nothing behind
                await asyncio.to_thread(output.mkdir, parents=True, exist_ok=True)
            for name, settings in suite.sets.items():
                summaries[name] = await _accuracy(suite, name, prompts[name], rollout, verifiers, output, progress)
                if settings.latency is not None:
                    latencies[name] = await _latency(suite, name, prompts[name], settings.latency, rollout, progress)

    is_local = starts_local_cluster(suite.cluster)
    if is_local:
        fetch_here(models.by_setting().values(), console)
    with connected(suite.cluster), RunProgress(console, total_steps=0) as progress:
        if not is_local:
            fetch_for_pools(suite, models, progress)
        asyncio.run(run())
    for name, summary in summaries.items():
        console.print(
            evaluation_table(f"{suite.student.path} on {name}", summary, group_by=suite.sets[name].group_label)
        )
    for name, latency in latencies.items():
        console.print(f"latency on {name}: {latency}", soft_wrap=True, highlight=False)
    if output is not None:
        _write_results(output, suite, models, summaries, latencies)
    return summaries


async def _accuracy(
    suite: EvaluationSuite,
    name: str,
    prompts: EncodedPrompts,
    rollout: RolloutPool,
    verifiers: VerdictPools,
    output: Path | None,
    progress: RunProgress,
) -> EvaluationSummary:
    """Evaluate one set, and write its responses if there is an output directory."""
    records = prompts.records
    file = ResponseFile(output / f"responses-{name}.jsonl", records) if output is not None else nullcontext()
    with file as responses, progress.phase(f"evaluating on {name}", total=len(records)) as phase:
        return await evaluate_set(
            rollout,
            verifiers,
            prompts,
            suite.sets[name],
            suite.rollout,
            seed=suite.seed,
            label=name,
            on_prompt=phase.advance,
            on_responses=responses.add if responses is not None else None,
        )


async def _latency(
    suite: EvaluationSuite,
    name: str,
    prompts: EncodedPrompts,
    latency: LatencyConfig,
    rollout: RolloutPool,
    progress: RunProgress,
) -> Latency:
    with progress.phase(f"measuring the latency on {name}", total=latency.requests) as phase:
        return await measure_latency(
            rollout,
            prompts,
            suite.sets[name],
            latency,
            suite.rollout,
            seed=suite.seed,
            label=name,
            on_response=phase.advance,
        )


def _write_results(
    output: Path,
    suite: EvaluationSuite,
    models: ResolvedModels,
    summaries: dict[str, EvaluationSummary],
    latencies: dict[str, Latency],
) -> None:
    results = {
        "model": suite.student.path,
        "model_version": models.student.version,
        "sets": {name: summary.as_dict() for name, summary in summaries.items()},
        "latency": {name: asdict(latency) for name, latency in latencies.items()},
        "settings": suite.model_dump(mode="json"),
    }
    write_atomically(output / "evaluation.json", json.dumps(results, indent=2) + "\n")


def _require_free(output: Path, suite: EvaluationSuite) -> None:
    if output.exists() and not output.is_dir():
        raise RunDirectoryError(f"--output {output} is a file; expected a directory")
    existing = [
        name
        for name in ("evaluation.json", *(f"responses-{name}.jsonl" for name in suite.sets))
        if (output / name).exists()
    ]
    if existing:
        raise RunDirectoryError(
            f"{output} already holds {', '.join(existing)}: choose another --output, or remove them"
        )
