"""`rlad teacher check`: statistics of a teacher on responses of the untrained student.

    prompts -> rollout pool -> (teachers, student as a scorer, verifiers) -> statistics, picture, verdict

The pools are those of a run without its learner. To compare likely tokens, the student is deployed a second time, as a
scoring model, in the place of the reference policy.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console

from actors.messages import SampleRequest
from pipelines.cluster.connection import connected
from pipelines.cluster.node_models import starts_local_cluster
from pipelines.cluster.resources import require_room
from pipelines.environment.requirements import require_packages
from pipelines.pretrain import ensure_starters_of
from pipelines.reports.teacher_figure import write_teacher_figure
from pipelines.resolution.resolved_run import ResolvedRun, resolve_run
from pipelines.run.directory import RunDirectory
from pipelines.run.downloads import fetch_here
from pipelines.run.progress import RunProgress
from pipelines.training.deadlines import together
from pipelines.training.evaluation import sample_and_judge
from pipelines.training.pools import Pools, fetch_for_pools, heartbeat_monitor, open_pools, require_shared_teachers
from rlad.advantages import group_advantages, shaped_rewards
from rlad.config import ReferenceConfig, RunConfig, TeacherConfig
from rlad.config.objectives import TrrdConfig
from rlad.contracts import RolloutGroup, TeacherScores
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError
from rlad.evaluation.teacher_check import (
    AnchorSettings,
    ScoredResponses,
    TeacherCheck,
    check_teacher,
    support_overlap,
)
from rlad.evaluation.teacher_verdict import verdict
from rlad.teacher.mixture import mix_teacher_scores

# The learner is not started: no weights change.
_NOT_STARTED = frozenset({"learner"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Result of `rlad teacher check`.

    Attributes:
        check: The statistics.
        anchor: TRRD settings of the veto fractions.
        verdict: Sentences.
        prompts: Number of prompts.
        responses: Number of responses.
        picture: File of the picture.
    """

    check: TeacherCheck
    anchor: AnchorSettings
    verdict: list[str]
    prompts: int
    responses: int
    picture: Path

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        anchor = self.anchor
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "verdict": self.verdict,
            "anchor": {
                "alpha": anchor.alpha,
                "clamp": list(anchor.clamp),
                "eps_low": anchor.eps_low,
                "eps_high": anchor.eps_high,
            },
            **self.check.as_dict(),
            "picture": str(self.picture),
        }


def run_check(config: RunConfig, console: Console, *, prompts: int, top_k: int, picture: Path) -> CheckResult:
    """Sample, judge and score responses of the student, and compute the statistics of the teacher.

    Args:
        config: A run with a teacher.
        console: Shows the progress.
        prompts: Number of training prompts to answer, `rollout.group_size` responses each.
        top_k: Likely tokens whose overlap is computed; 0 leaves it out, and the second deployment of the student.
        picture: File for the picture.

    Raises:
        ConfigError: The run has no teacher.
        RladError: A part of the run does not fit, or a pool failed.
    """
    checked = scoring_config(config, top_k=top_k)
    anchor = anchor_of(config)
    require_packages(checked)
    ensure_starters_of(checked, console)
    # No file is written there: the path only makes the names of actors and applications unique.
    directory = RunDirectory(Path(tempfile.gettempdir()) / f"rlad-teacher-check-{os.getpid()}")
    run = resolve_run(checked, directory)
    is_local = starts_local_cluster(checked.cluster)
    if is_local:
        fetch_here(run.models.by_setting().values(), console)
    with connected(checked.cluster) as resources, RunProgress(console, total_steps=0) as progress:
        require_room(checked, resources, "the cluster", without=_NOT_STARTED)
        asyncio.run(require_shared_teachers(run))
        if not is_local:
            fetch_for_pools(checked, run.models, progress)
        groups = asyncio.run(_scored_groups(run, config, progress, prompts=prompts, top_k=top_k))
    check = check_teacher(groups, anchor)
    picture.parent.mkdir(parents=True, exist_ok=True)
    labels = ", ".join(teacher.label for teacher in config.teachers_by_id.values())
    write_teacher_figure(check, anchor, picture, title=f"{labels} on responses of {config.student.path}")
    return CheckResult(
        check=check,
        anchor=anchor,
        verdict=verdict(check),
        prompts=len(groups),
        responses=sum(len(group.rewards) for group in groups),
        picture=picture,
    )


def scoring_config(config: RunConfig, *, top_k: int) -> RunConfig:
    """Return the configuration of the check's pools: the run's, with an objective that requests what the check needs.

    Raises:
        ConfigError: The run has no teacher.
    """
    if not config.teachers_by_id:
        raise ConfigError(
            f"`rlad teacher check` requires a teacher; the configuration has none (objective {config.objective.name!r})"
            ". Add a `teacher` section, and an objective that uses it, such as objective.name=trrd"
        )
    objective: dict[str, Any] = {"name": "trrd"}
    reference = None
    if top_k:
        objective = {"name": "kdrl", "estimator": "topk", "top_k": top_k, "reference_kl": 1.0}
        reference = _student_scorer(config).model_dump()
    settings = config.model_dump()
    for teacher in (settings["teacher"], *settings["teachers"].values()):
        if teacher is not None:
            teacher.pop("send", None)  # the check compares log-probabilities
    return RunConfig.model_validate({**settings, "objective": objective, "reference": reference, "offline": None})


def _student_scorer(config: RunConfig) -> ReferenceConfig:
    """Return the settings of the student as a scoring model. It needs the room of a rollout worker."""
    teachers = [teacher for teacher in config.teachers_by_id.values() if isinstance(teacher, TeacherConfig)]
    rollout = config.rollout
    if teachers:
        settings = teachers[0].model_dump(exclude={"engine_args", "prompt_template", "send"})
    else:
        settings = {"engine": "vllm" if rollout.temperature == 1.0 else "transformers"}
    return ReferenceConfig.model_validate(
        {
            **settings,
            "path": None,
            "dtype": config.student.dtype,
            "replicas": 1,
            "tensor_parallel": rollout.tensor_parallel,
            "gpus_per_replica": rollout.gpus_per_worker,
        }
    )


def anchor_of(config: RunConfig) -> AnchorSettings:
    """Return the TRRD settings of a run, or the paper's if its objective is another one."""
    objective = config.objective
    settings = objective if isinstance(objective, TrrdConfig) and objective.uses_teacher else TrrdConfig()
    return AnchorSettings(
        alpha=settings.alpha, clamp=settings.clamp_bounds, eps_low=settings.eps_low, eps_high=settings.eps_high
    )


async def _scored_groups(
    run: ResolvedRun, config: RunConfig, progress: RunProgress, *, prompts: int, top_k: int
) -> list[ScoredResponses]:
    """Start the pools, and return the scored responses to a random selection of the training prompts."""
    total = len(run.prompts.records)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(total)[:prompts]).tolist()
    rollout = config.rollout
    # As in an evaluation: more than twice the sequences that the engines decode would only queue there.
    in_flight = asyncio.Semaphore(max(1, math.ceil(2 * rollout.workers * rollout.max_sequences / rollout.group_size)))
    owner = ray.remote(_Owner).options(num_cpus=0).remote()
    monitor = heartbeat_monitor(config, run.run_id)
    async with AsyncExitStack() as closing:
        await closing.enter_async_context(monitor.running())
        with progress.phase("starting rollout workers, teachers and verifiers"):
            pools = await closing.enter_async_context(open_pools(run, transport=None, owner=owner, monitor=monitor))
        with progress.phase("sampling, judging and scoring", total=len(chosen)) as phase:

            async def score(index: int) -> ScoredResponses:
                async with in_flight:
                    group = await _score_prompt(run, config, pools, index, top_k)
                phase.advance()
                return group

            return await together(*(score(index) for index in chosen))


class _Owner:
    """Actor of this driver. If the driver dies, its teachers see that this actor is gone, and delete themselves."""


async def _score_prompt(run: ResolvedRun, config: RunConfig, pools: Pools, index: int, top_k: int) -> ScoredResponses:
    record, rollout = run.prompts.records[index], config.rollout
    request = SampleRequest(
        uid=f"check:{record.id}",
        attempt=0,
        prompt_id=record.id,
        task=record.task,
        answer=record.answer,
        prompt_ids=run.prompts.token_ids[index],
        num_responses=rollout.group_size,
        max_response_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        seed=config.seed,
    )
    sampled, judged = await sample_and_judge(pools.rollout, pools.verifiers, request)
    mix, tokens, support = run.teachers_by_prompt[record.id], sampled.summary.num_tokens, top_k or None
    calls = [
        pools.teachers[name].score(
            sampled.columns,
            num_tokens=tokens,
            support=support,
            prompt_ids=run.teacher_prompts.get(name, {}).get(record.id),
        )
        for name in mix
    ]
    if pools.reference is not None:
        calls.append(pools.reference.score(sampled.columns, num_tokens=tokens, support=support))
    scores = [TeacherScores.from_columns(await ref) for ref in await together(*calls)]
    own = scores.pop() if pools.reference is not None else None
    teacher = mix_teacher_scores(list(zip(mix.values(), scores, strict=True)))
    group = RolloutGroup.from_columns(await sampled.columns)
    rewards = shaped_rewards(judged.rewards, group.response_lengths, config.overlong_penalty)
    return ScoredResponses(
        kinds=kinds_of(record, config.evaluation.group_by),
        rewards=np.asarray(judged.rewards),
        advantages=group_advantages(rewards, config.objective.advantage_estimator, is_judged=judged.verdicts.is_judged),
        is_judged=judged.verdicts.is_judged,
        offsets=group.response_offsets,
        student=group.behaviour_logprobs,
        teacher=teacher.logprobs,
        overlap=np.full(tokens, np.nan) if own is None else _overlap_of(own, teacher),
    )


def _overlap_of(student: TeacherScores, teacher: TeacherScores) -> np.ndarray:
    assert student.support_ids is not None
    assert teacher.support_ids is not None
    return support_overlap(
        student.support_ids.reshape(-1, student.support_size), teacher.support_ids.reshape(-1, teacher.support_size)
    )


def kinds_of(record: PromptRecord, group_by: str | list[str]) -> tuple[str, ...]:
    """Return the kinds of problem of a prompt: `KEY VALUE` of each key of `evaluation.group_by` that it has.

    A prompt without any of them counts under its task.
    """
    keys = [group_by] if isinstance(group_by, str) else group_by
    columns = {**record.metadata, "task": record.task}
    return tuple(f"{key} {columns[key]}" for key in keys if key in columns) or (f"task {record.task}",)
