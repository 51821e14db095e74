"""Making traces: the teacher answers the prompts, verifiers judge, what is right is kept.

    prompts -> rollout pool over the teacher's model -> verifiers -> parts of the trace folder

The pools are closed before the training's open: both may need the same machines.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from actors.messages import JudgedGroup, SampleRequest
from actors.pool.placement import selector_of
from actors.rollout.pool import RolloutPool
from actors.verifier.reward_pool import VerdictPools
from pipelines.run.progress import RunProgress
from pipelines.training.deadlines import together
from pipelines.training.evaluation import sample_and_judge
from pipelines.training.prompts import EncodedPrompts
from rlad.config import OfflineConfig, RunConfig, TeacherConfig
from rlad.contracts import Outcome, RolloutGroup
from rlad.data.chat import load_tokenizer, template_fingerprint, tokenizer_fingerprint
from rlad.data.records import dataset_fingerprint
from rlad.data.trace_files import TraceFolder, TraceManifest, require_manifest
from rlad.data.trace_records import Trace, TracedPrompt, TraceProvenance
from rlad.errors import ConfigError, VocabularyMismatchError
from rlad.model_fingerprint import model_fingerprint
from rlad.models.references import resolve_model


def offline_settings(config: RunConfig) -> OfflineConfig:
    """The section of an offline run.

    Raises:
        ConfigError: the run has none.
    """
    if config.offline is None:
        raise ConfigError("an offline run needs an `offline:` section")
    return config.offline


def reused_traces(config: RunConfig, prompts: EncodedPrompts, folder: Path) -> TraceManifest:
    """The traces of an earlier run, which must fit this run's student and prompts.

    Raises:
        PlanError: they are not there, not complete, or do not fit.
    """
    manifest = require_manifest(folder)
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    manifest.provenance.require_fits(
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=template_fingerprint(tokenizer),
        dataset=dataset_fingerprint(prompts.records),
        path=folder,
    )
    return manifest


def provenance_of(config: RunConfig, prompts: EncodedPrompts) -> TraceProvenance:
    """Where the traces that this run makes come from. Reads all of the teacher's weights.

    Raises:
        VocabularyMismatchError: the student could not read the teacher's token ids.
        PlanError: no such model.
    """
    offline, teacher = offline_settings(config), _teacher(config)
    directory = resolve_model(teacher.path)
    student_tokenizer = load_tokenizer(resolve_model(config.student.path))
    tokenizer = tokenizer_fingerprint(directory)
    if tokenizer != (student := tokenizer_fingerprint(student_tokenizer)):
        raise VocabularyMismatchError(
            f"student and teacher have different vocabularies (tokenizers {student} and {tokenizer}): the student trains on the teacher's token ids, "
            f"so both must share one tokenizer"
        )
    return TraceProvenance(
        teacher=model_fingerprint(directory, tokenizer=tokenizer),
        teacher_path=teacher.path,
        tokenizer=tokenizer,
        template=template_fingerprint(student_tokenizer),
        dataset=dataset_fingerprint(prompts.records),
        traces_per_prompt=offline.traces_per_prompt,
        max_accepted_per_prompt=offline.max_accepted_per_prompt,
        max_prompts=offline.max_prompts,
        temperature=offline.temperature,
        top_p=offline.top_p,
        max_response_tokens=offline.generator_of(config.rollout).max_response_tokens,
    )


async def make_traces(
    config: RunConfig, prompts: EncodedPrompts, folder: Path, progress: RunProgress, *, run_id: str
) -> TraceManifest:
    """Fill a folder with traces, or go on filling it behind the last part that is there. Needs a connected cluster.

    Raises:
        RunDirectoryError: the folder holds traces of another teacher or setting.
        RladError: what ended the generation; the parts written so far stay.
    """
    with progress.phase("reading the teacher's fingerprint"):
        provenance = await asyncio.to_thread(provenance_of, config, prompts)
    traces = TraceFolder(folder, provenance, prompts_per_part=offline_settings(config).prompts_per_part)
    wanted = range(min(len(prompts.records), provenance.max_prompts or len(prompts.records)))
    missing = [position for position in wanted if position not in traces.finished]
    if missing:
        try:
            await _generate(config, prompts, missing, traces, progress, run_id=run_id)
        finally:
            traces.flush()  # what is finished is kept, whatever ended the rest
    return traces.finish()


async def _generate(
    config: RunConfig,
    prompts: EncodedPrompts,
    missing: list[int],
    traces: TraceFolder,
    progress: RunProgress,
    *,
    run_id: str,
) -> None:
    offline, teacher = offline_settings(config), _teacher(config)
    generator, timeout_s = offline.generator_of(config.rollout), config.cluster.start_timeout_s
    student = str(resolve_model(config.student.path))
    tokenizer = Tokenizer.from_file(str(Path(student) / "tokenizer.json"))
    rollout = RolloutPool(
        generator,
        model_path=str(resolve_model(teacher.path)),
        dtype=teacher.dtype,
        seed=config.seed,
        start_timeout_s=timeout_s,
        run_id=f"{run_id}-traces",
        label_selector=selector_of(config.cluster, "teacher"),
    )
    verifiers = VerdictPools(
        config.verifier_pool,
        config.verifiers,
        tokenizer_path=student,
        start_timeout_s=timeout_s,
        cluster=config.cluster,
    )
    # Twice what the engines decode at once keeps them busy; more would only wait there, with its deadline running.
    in_flight = asyncio.Semaphore(
        max(1, math.ceil(2 * generator.workers * generator.max_sequences / offline.traces_per_prompt))
    )
    done = tokens = accepted = 0

    async def one(position: int) -> None:
        nonlocal done, tokens, accepted
        async with in_flight:
            traced = await _trace(
                rollout,
                verifiers,
                tokenizer,
                _request(config, prompts, position),
                position,
                offline.max_accepted_per_prompt,
            )
        traces.add(traced)
        done, tokens, accepted = done + 1, tokens + traced.num_tokens, accepted + len(traced.traces)
        speed = tokens / (time.monotonic() - started)
        phase.advance(f"{accepted} traces of {done * offline.traces_per_prompt} responses accepted  {speed:,.0f} tok/s")

    async with AsyncExitStack() as closing:
        closing.push_async_callback(rollout.close)
        for pool in verifiers.pools:
            closing.push_async_callback(pool.close)
        with progress.phase("starting the teacher's workers and verifiers"):
            await together(rollout.start(), *(pool.start() for pool in verifiers.pools))
        started = time.monotonic()
        with progress.phase("making traces", total=len(missing)) as phase:
            await together(*(one(position) for position in missing))


def _request(config: RunConfig, prompts: EncodedPrompts, position: int) -> SampleRequest:
    offline, record = offline_settings(config), prompts.records[position]
    return SampleRequest(
        uid=f"traces:{position}:{record.id}",
        attempt=0,
        prompt_id=record.id,
        task=record.task,
        answer=record.answer,
        prompt_ids=prompts.token_ids[position],
        num_responses=offline.traces_per_prompt,
        max_response_tokens=offline.generator_of(config.rollout).max_response_tokens,
        temperature=offline.temperature,
        top_p=offline.top_p,
        seed=None,
    )


async def _trace(
    rollout: RolloutPool,
    verifiers: VerdictPools,
    tokenizer: Tokenizer,
    request: SampleRequest,
    position: int,
    max_accepted: int | None,
) -> TracedPrompt:
    sampled, judged = await sample_and_judge(rollout, verifiers, request)
    group = RolloutGroup.from_columns(await sampled.group_ref)
    return traced_prompt(group, judged, tokenizer, position=position, max_accepted=max_accepted)


def traced_prompt(
    group: RolloutGroup, judged: JudgedGroup, tokenizer: Tokenizer, *, position: int, max_accepted: int | None
) -> TracedPrompt:
    """What of a judged group is kept: the responses that the verifier found correct, the first so many."""
    outcomes = [Outcome(outcome) for outcome in judged.outcomes]
    kept = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.CORRECT][:max_accepted]
    texts = tokenizer.decode_batch(
        [group.response_ids[group.response(index)].tolist() for index in kept], skip_special_tokens=True
    )
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
                reward=judged.rewards[index],
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
            "traces are made by a teacher: add a `teacher:` section with its path, or name existing ones with offline.traces"
        )
    return config.teacher
