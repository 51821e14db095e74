"""The resolved run: models, prompts and teachers of a run, determined once before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.resolution.answers import try_answers
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_disjoint, require_group_key
from pipelines.resolution.teacher_routing import require_one_vocabulary, route_prompts
from pipelines.resolution.tokenizer_findings import tokenizer_findings
from pipelines.run.directory import RunDirectory
from pipelines.run.result import run_id_of
from rlad.config import RunConfig
from rlad.data.chat import tokenizer_fingerprint
from rlad.data.records import dataset_fingerprint
from rlad.errors import DataError, PlanError
from rlad.models.references import resolve_model

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """A run whose references are resolved.

    Attributes:
        config: The run's configuration.
        directory: The run directory.
        run_id: Name of the run in Ray actors, Serve applications, shared memory and logs.
        student: Local directory of the student.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer.
        frozen_models: Local directories of the frozen models that the run starts, by pool.
        prompts: Training prompts.
        dataset_fingerprint: Fingerprint of the training prompts.
        evaluation_prompts: Evaluation prompts; none of them is a training prompt.
        teachers_by_prompt: Teachers of every prompt, by prompt id: teacher ids with their weights.
    """

    config: RunConfig
    directory: RunDirectory
    run_id: str
    student: Path
    tokenizer_fingerprint: str
    frozen_models: Mapping[str, Path]
    prompts: EncodedPrompts
    dataset_fingerprint: str
    evaluation_prompts: EncodedPrompts
    teachers_by_prompt: Mapping[str, Mapping[str, float]]


def resolve_run(config: RunConfig, directory: RunDirectory) -> ResolvedRun:
    """Resolve the references of a run, and check that its parts fit together.

    Raises:
        PlanError: A model or verifier is missing, evaluation prompts are training prompts, a prompt has no teacher, or
            no response could earn a reward.
        DataError: A prompt cannot be read or encoded, or all prompts are too long.
        VocabularyMismatchError: A teacher, the reference or a reward model cannot score the student's tokens.
    """
    student = resolve_model(config.student.path)
    started = config.frozen_models if config.needs_teacher else config.scoring_pools
    frozen_models = {pool: resolve_model(model.path) for pool, model in started.items()}
    try:
        prompts = prepare_prompts(config.prompts, config, student)
        evaluation_prompts = prepare_prompts(config.evaluation.prompts, config, student)
    except DataError as error:
        # A special token in a message can be the reason.
        faults = [each.message for each in tokenizer_findings(config, student, {}, ()) if each.level == "error"]
        if not faults:
            raise
        raise PlanError("\n".join([str(error), *faults])) from error
    require_disjoint(prompts, evaluation_prompts)
    require_group_key(evaluation_prompts, config.evaluation)
    teachers_by_prompt = route_prompts(config, prompts.records)
    scoring_models = {pool: path for pool, path in frozen_models.items() if pool in config.scoring_pools}
    require_one_vocabulary(config, student=student, scoring_models=scoring_models)
    _require_rewards(config, student, scoring_models, prompts, evaluation_prompts)
    return ResolvedRun(
        config=config,
        directory=directory,
        run_id=run_id_of(config, directory),
        student=student,
        tokenizer_fingerprint=tokenizer_fingerprint(student),
        frozen_models=frozen_models,
        prompts=prompts,
        dataset_fingerprint=dataset_fingerprint(prompts.records),
        evaluation_prompts=evaluation_prompts,
        teachers_by_prompt=teachers_by_prompt,
    )


def _require_rewards(
    config: RunConfig,
    student: Path,
    teachers: Mapping[str, Path],
    prompts: EncodedPrompts,
    evaluation_prompts: EncodedPrompts,
) -> None:
    """Refuse a run whose responses cannot earn a reward, and log what would make some of them impossible.

    Raises:
        PlanError: With every reason and its remedy.
    """
    sets = {"training": prompts, "evaluation": evaluation_prompts}
    found = [
        *((each.level, each.message) for each in tokenizer_findings(config, student, teachers, prompts.records)),
        *((trial.level, trial.message) for trial in try_answers(sets, config.verifiers, seed=config.seed)),
    ]
    for level, message in found:
        if level == "warning":
            _LOG.warning("preflight: %s", message)
    if errors := [message for level, message in found if level == "error"]:
        raise PlanError("\n".join(errors))
