"""Generation of traces: the teacher answers the prompts, verifiers judge, and correct responses are kept.

    prompts -> rollout pool with the teacher's model -> verifiers -> parts of the trace folder

The pools are closed before the training's pools open: both may need the same machines.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from actors.messages import SampleRequest, VerifierResult
from actors.pool.placement import selector_of
from actors.rollout.pool import RolloutPool
from actors.verifier.reward_pool import VerdictPools
from actors.verifier.worker import tagged_verifiers
from pipelines.cluster.resources import generation_demand
from pipelines.monitoring.cost_meter import CostMeter
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.resolution.sampling import sampling_tokens
from pipelines.run.progress import PhaseProgress, RunProgress
from pipelines.training.deadlines import run_unless_failed, together
from pipelines.training.evaluation import sample_and_judge
from pipelines.training.pools import heartbeat_monitor
from rlad.config import OfflineConfig, RunConfig, TeacherConfig
from rlad.contracts import Outcome, RolloutGroup
from rlad.data.chat import load_tokenizer, template_fingerprint, tokenizer_fingerprint
from rlad.data.trace_files import TraceFolder, TraceManifest
from rlad.data.trace_records import Trace, TracedPrompt, TraceProvenance
from rlad.errors import ConfigError, VocabularyMismatchError
from rlad.model_fingerprint import model_fingerprint
from rlad.models.locations import fetch_model
from rlad.tokenizers.decoding import ResponseDecoder
from rlad.tokenizers.vocabulary import scoring_problem, vocabulary_of


def offline_settings(config: RunConfig) -> OfflineConfig:
    """Return the `offline` section.

    Raises:
        ConfigError: The configuration has none.
    """
    if config.offline is None:
        raise ConfigError("offline distillation requires an `offline:` section")
    return config.offline


def provenance_of(run: ResolvedRun) -> TraceProvenance:
    """Describe the origin of the traces that a run generates. Reads all of the teacher's weights.

    Raises:
        VocabularyMismatchError: The student cannot read the teacher's token ids.
        ConfigError: The run has no teacher that generates traces.
    """
    config, offline, teacher = run.config, offline_settings(run.config), _teacher(run.config)
    directory = fetch_model(run.models.frozen["teacher"].location)
    tokenizer = load_tokenizer(directory)
    problem = scoring_problem(run.vocabulary, vocabulary_of(tokenizer))
    if problem is not None:
        raise VocabularyMismatchError(
            f"student and teacher have different vocabularies: {problem}; the student trains on the teacher's token "
            "ids, so both must share one tokenizer (the student may have fewer tokens)"
        )
    return TraceProvenance(
        teacher=model_fingerprint(directory, tokenizer=tokenizer_fingerprint(tokenizer)),
        teacher_path=teacher.path,
        tokenizer=run.tokenizer_fingerprint,  # the teacher samples ids of the student only
        template=template_fingerprint(load_tokenizer(run.student), config.student.chat_template_kwargs),
        dataset=run.dataset_fingerprint,
        traces_per_prompt=offline.traces_per_prompt,
        max_accepted_per_prompt=offline.max_accepted_per_prompt,
        max_prompts=offline.max_prompts,
        temperature=offline.temperature,
        top_p=offline.top_p,
        max_response_tokens=offline.generator_of(config.rollout).max_response_tokens,
    )


async def generate_traces(run: ResolvedRun, folder: Path, progress: RunProgress, cost: CostMeter) -> TraceManifest:
    """Fill a folder with traces, after the last part that it holds. Requires a connected cluster.

    Raises:
        StopRequestedError: The budget of the run is used up. The parts written so far stay.
        RunDirectoryError: The folder holds traces of another teacher or other settings.
        RladError: The error that ended the generation. The parts written so far stay.
    """
    with progress.phase("reading the teacher's fingerprint"):
        provenance = await asyncio.to_thread(provenance_of, run)
    traces = TraceFolder(folder, provenance, prompts_per_part=offline_settings(run.config).prompts_per_part)
    num_prompts = len(run.prompts.records)
    missing = [
        position
        for position in range(min(num_prompts, provenance.max_prompts or num_prompts))
        if position not in traces.finished
    ]
    if missing:
        try:
            with cost.reserving(generation_demand(run.config)):
                await run_unless_failed(_generate(run, missing, traces, progress), watched=cost.wait_exhausted())
        finally:
            traces.flush()  # keep finished traces also after an error
    return traces.finish()


async def _generate(run: ResolvedRun, missing: list[int], traces: TraceFolder, progress: RunProgress) -> None:
    config, offline, teacher = run.config, offline_settings(run.config), _teacher(run.config)
    generator, timeout_s = offline.generator_of(config.rollout), config.cluster.start_timeout_s
    run_id = f"{run.run_id}-traces"
    monitor = heartbeat_monitor(config, run_id)
    rollout = RolloutPool(
        generator,
        model_path=run.models.frozen["teacher"].location,
        dtype=teacher.dtype,
        seed=config.seed,
        start_timeout_s=timeout_s,
        run_id=run_id,
        label_selector=selector_of(config.cluster, "teacher"),
        tokens=sampling_tokens(load_tokenizer(run.student), run.frozen_models["teacher"], config),
        monitor=monitor,
    )
    verifiers = VerdictPools(
        config.verifier_pool,
        run.models.verifiers(config),
        tokenizer_path=run.models.student.location,
        start_timeout_s=timeout_s,
        cluster=config.cluster,
        monitor=monitor,
    )
    tags = [tag for tagged in tagged_verifiers(config.verifiers).values() for tag in tagged.tags]
    decoder = ResponseDecoder(Tokenizer.from_file(str(run.student / "tokenizer.json")), tags)
    # Twice the number of sequences that the engines decode at once keeps them busy. More would only queue there, with
    # its deadline running.
    in_flight = asyncio.Semaphore(
        max(1, math.ceil(2 * generator.workers * generator.max_sequences / offline.traces_per_prompt))
    )
    async with AsyncExitStack() as closing:
        await closing.enter_async_context(monitor.running())
        closing.push_async_callback(rollout.close)
        for pool in verifiers.pools:
            closing.push_async_callback(pool.close)
        with progress.phase("starting the teacher's workers and verifiers"):
            await together(rollout.start(), *(pool.start() for pool in verifiers.pools))
        with progress.phase("generating traces", total=len(missing)) as phase:
            counter = _Counter(phase=phase, traces_per_prompt=offline.traces_per_prompt, started_at=time.monotonic())

            async def trace_prompt(position: int) -> None:
                async with in_flight:
                    sampled, verified = await sample_and_judge(rollout, verifiers, _request(run, position))
                    group = RolloutGroup.from_columns(await sampled.columns)
                    traced = traced_prompt(
                        group, verified, decoder, position=position, max_accepted=offline.max_accepted_per_prompt
                    )
                traces.add(traced)
                counter.add(traced)

            await together(*(trace_prompt(position) for position in missing))


@dataclass(slots=True, kw_only=True)
class _Counter:
    """Counts traces for the progress line."""

    phase: PhaseProgress
    traces_per_prompt: int
    started_at: float
    prompts: int = 0
    tokens: int = 0
    accepted: int = 0

    def add(self, traced: TracedPrompt) -> None:
        self.prompts += 1
        self.tokens += traced.num_tokens
        self.accepted += len(traced.traces)
        speed = self.tokens / (time.monotonic() - self.started_at)
        responses = self.prompts * self.traces_per_prompt
        self.phase.advance(f"{self.accepted} traces of {responses} responses accepted  {speed:,.0f} tok/s")


def _request(run: ResolvedRun, position: int) -> SampleRequest:
    offline, record = offline_settings(run.config), run.prompts.records[position]
    return SampleRequest(
        uid=f"traces:{position}:{record.id}",
        attempt=0,
        prompt_id=record.id,
        task=record.task,
        answer=record.answer,
        prompt_ids=run.prompts.token_ids[position],
        num_responses=offline.traces_per_prompt,
        max_response_tokens=offline.generator_of(run.config.rollout).max_response_tokens,
        temperature=offline.temperature,
        top_p=offline.top_p,
        seed=None,
    )


def traced_prompt(
    group: RolloutGroup, verified: VerifierResult, decoder: ResponseDecoder, *, position: int, max_accepted: int | None
) -> TracedPrompt:
    """Select the responses of a group that become traces: the first `max_accepted` that the verifier found correct."""
    outcomes = [Outcome(outcome) for outcome in verified.outcomes]
    kept = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.CORRECT][:max_accepted]
    texts = decoder.decode([group.response_ids[group.response(index)].tolist() for index in kept])
    return TracedPrompt(
        position=position,
        prompt_id=group.prompt_id,
        task=group.task,
        traces=[
            Trace(
                trace_index=index,
                # Copies: views would keep the whole group in the object store until its part is written.
                response_ids=np.array(group.response_ids[group.response(index)]),
                response_text=text,
                behaviour_logprobs=np.array(group.behaviour_logprobs[group.response(index)]),
                reward=verified.rewards[index],
                outcome=outcomes[index],
            )
            for index, text in zip(kept, texts, strict=True)
        ],
        outcomes=outcomes,
        num_tokens=group.num_tokens,
    )


def _teacher(config: RunConfig) -> TeacherConfig:
    if not isinstance(config.teacher, TeacherConfig):
        raise ConfigError(
            "a teacher generates the traces: add a `teacher:` section with its path, or name existing traces with "
            "offline.traces"
        )
    return config.teacher
