"""The offline run: what the teacher wrote and the verifiers accepted, then supervised training of the student on it.

    prompts -> teacher -> verifiers -> traces (kept, and of use to later runs)
                                         traces -> broker -> learner -> weights -> rollout pool, for evaluation alone

Each trace is a group of one response, so broker, ledger, packing, learner, checkpoints, evaluation and report are those of every training run.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import ray
from rich.console import Console

from actors.experience.batch_shards import GroupRefs
from actors.experience.broker import FinishedGroup
from actors.messages import JudgedGroup, SampledGroup
from pipelines.run.directory import RunDirectory
from pipelines.run.progress import RunProgress
from pipelines.run.result import RunResult, run_id_of
from pipelines.trace_generation import make_traces, offline_settings, reused_traces
from pipelines.training.prompts import EncodedPrompts, prepare_prompts
from pipelines.training.run import TrainingRun, complete, prepare_evaluation, require_kind
from pipelines.training.step_loop import OpenStep, PromptScheduler, SubmitGroup, TrainedStep, TrainingSet
from pipelines.training.step_metrics import FollowedGroup, exposed_times
from rlad.config import RunConfig
from rlad.contracts import FinishReason, RolloutGroup, Verdicts
from rlad.data.trace_files import TraceManifest
from rlad.data.training_traces import TrainingTrace, TrainingTraces, write_training_traces
from rlad.errors import PlanError
from rlad.models.references import resolve_model


def offline(config: RunConfig, run: RunDirectory, *, resume: bool, console: Console) -> RunResult:
    """Run, or with `resume` continue, an offline distillation. Blocks until the student is exported.

    Raises:
        RladError: what went wrong, in one sentence; the run directory holds the traces made so far and the last checkpoint.
    """
    require_kind(config, offline=True)
    settings = offline_settings(config)
    with run.hold(config, resume=resume):
        student = str(resolve_model(config.student.path))
        prompts = prepare_prompts(config.prompts, config, student)
        evaluation_prompts = prepare_evaluation(config, student, prompts)
        folder = Path(settings.traces).expanduser() if settings.traces is not None else run.traces
        # Refused here, before anything starts, unless the run has its own copy of them already.
        if settings.traces is not None and not run.training_traces.exists():
            reused_traces(config, prompts, folder)

        async def train(progress: RunProgress) -> None:
            traces = await _prepare_traces(config, run, prompts, folder, progress, console)
            await _OfflineTraining(config, run, prompts, traces, evaluation_prompts, progress).run()

        return complete(config, run, console, train)


async def _prepare_traces(
    config: RunConfig, run: RunDirectory, prompts: EncodedPrompts, folder: Path, progress: RunProgress, console: Console
) -> TrainingTraces:
    """The run's own copy of the traces, made when there is none yet."""
    settings = offline_settings(config)
    if not run.training_traces.exists():
        manifest = TraceManifest.read(folder) or await make_traces(
            config, prompts, folder, progress, run_id=run_id_of(config, run)
        )
        console.print(_summary(manifest, folder), highlight=False, soft_wrap=True)
        if manifest.counts.accepted == 0:
            raise PlanError(
                f"the teacher solved none of {manifest.counts.prompts} prompts ({manifest.counts.generated} responses): there is nothing to train on. "
                f"Look at the verifier's counts in {folder}, and at the teacher with `rlad eval`"
            )
        write_training_traces(
            manifest.part_paths(folder),
            run.training_traces,
            max_prompts=settings.max_prompts,
            max_accepted_per_prompt=settings.max_accepted_per_prompt,
        )
    return TrainingTraces(run.training_traces)


def _summary(manifest: TraceManifest, folder: Path) -> str:
    counts = manifest.counts
    rejected = ", ".join(f"{number} {outcome}" for outcome, number in counts.rejected.items() if number)
    return (
        f"traces: {counts.accepted} of {counts.generated} responses to {counts.prompts} prompts, {counts.unsolved_prompts} prompts without any"
        f"{f' (rejected: {rejected})' if rejected else ''}: {folder}"
    )


class _OfflineTraining(TrainingRun):
    """Traces, each a group of its own, once an epoch."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        prompts: EncodedPrompts,
        traces: TrainingTraces,
        evaluation_prompts: EncodedPrompts,
        progress: RunProgress,
    ) -> None:
        self._prompts, self._traces = prompts, traces
        training_set = TrainingSet(
            fingerprint=traces.fingerprint,
            prompt_ids=[prompts.records[position].id for position in traces.prompt_positions.tolist()],
            group_size=1,
        )
        super().__init__(config, run, training_set, evaluation_prompts, progress)

    def _group_submitter(self, turns: PromptScheduler) -> SubmitGroup:
        return self._bring_trace

    async def _bring_trace(self, step: OpenStep, uid: str, attempt: int, record: int) -> FollowedGroup:
        issued_at = time.time()
        group, verdicts = group_of(self._traces[record], self._prompts, uid=uid, attempt=attempt)
        refs = GroupRefs(group=ray.put(group.to_columns()), verdicts=verdicts, teacher_scores=())
        await self._broker.tell("record_sampled", uid, attempt)
        finished = FinishedGroup(
            uid=uid,
            attempt=attempt,
            refs=refs,
            prompt_tokens=len(group.prompt_ids),
            response_lengths=(group.num_tokens,),
            is_truncated=(False,),
            rewards=(float(verdicts.rewards[0]),),
        )
        read_at = time.time()
        await self._broker.tell("add", step.number, finished)
        sampled = SampledGroup(
            uid=uid,
            attempt=attempt,
            group_ref=refs.group,
            response_lengths=finished.response_lengths,
            is_truncated=finished.is_truncated,
            prompt_tokens=finished.prompt_tokens,
            tokens_by_version={0: group.num_tokens},
            worker="traces",
            queued_s=0.0,
            elapsed_s=read_at - issued_at,
        )
        judged = JudgedGroup(verdicts=verdicts, elapsed_s=0.0)
        return FollowedGroup(
            sampled=sampled,
            judged=judged,
            issued_at=issued_at,
            sampled_at=read_at,
            judged_at=read_at,
            scored_at=read_at,
            attempts=1,
        )

    def _metrics(self, trained: TrainedStep) -> dict[str, float]:
        """Metrics of a step, named as those of other runs where they are the same thing: reading the traces stands for generation."""
        lengths = np.concatenate([group.sampled.response_lengths for group in trained.groups])
        times = exposed_times(trained.groups, trained.times)
        return {
            "traces/response_tokens": float(lengths.sum()),
            "traces/response_tokens_mean": float(lengths.mean()),
            "traces/response_tokens_max": float(lengths.max()),
            "traces/tokens_per_s": float(lengths.sum()) / times["time/step_s"],
            **times,
            # Without the distance of the learner's log-probabilities to the sampler's: the sampler was the teacher, it is no engine's noise.
            **{
                name: value
                for name, value in trained.report.metrics.items()
                if not name.startswith("learner/logprob_gap")
            },
        }


def group_of(trace: TrainingTrace, prompts: EncodedPrompts, *, uid: str, attempt: int) -> tuple[RolloutGroup, Verdicts]:
    """A trace as a group of one response, at the temperature of its cross-entropy, with the verdict that let it in."""
    prompt = prompts.records[trace.prompt_position]
    group = RolloutGroup(
        uid=uid,
        attempt=attempt,
        prompt_id=prompt.id,
        task=prompt.task,
        answer=prompt.answer,
        temperature=1.0,
        prompt_ids=prompts.token_ids[trace.prompt_position],
        response_ids=trace.response_ids,
        response_offsets=np.array([0, len(trace.response_ids)], np.int64),
        behaviour_logprobs=trace.behaviour_logprobs,
        policy_versions=np.zeros(len(trace.response_ids), np.int32),
        finish_reasons=np.array([FinishReason.STOP], np.uint8),
    )
    verdicts = Verdicts(
        uid=uid,
        attempt=attempt,
        rewards=np.array([trace.reward], np.float32),
        outcomes=np.array([trace.outcome], np.uint8),
        elapsed_s=np.zeros(1, np.float32),
    )
    return group, verdicts
