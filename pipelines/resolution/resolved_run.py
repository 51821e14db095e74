"""The resolved run: models, prompts and teachers of a run, determined once before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.resolution.answers import try_answers
from pipelines.resolution.models import ResolvedModels, resolve_models
from pipelines.resolution.overlap import DisjointPrompts, disjoint
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_group_key
from pipelines.resolution.sampling import sampling_tokens
from pipelines.resolution.teacher_context import longest_prompts, require_context
from pipelines.resolution.teacher_routing import privileged_prompts, require_one_vocabulary, route_prompts
from pipelines.resolution.tokenizer_findings import tokenizer_findings
from pipelines.run.directory import PromptsRecord, RunDirectory
from pipelines.run.result import run_id_of
from rlad.config import RunConfig
from rlad.config.prompts import pinned
from rlad.data.chat import load_tokenizer, tokenizer_fingerprint
from rlad.errors import DataError, PlanError
from rlad.model_fingerprint import context_tokens, output_size
from rlad.models.locations import fetch_model
from rlad.tokenizers.stopping import SamplingTokens
from rlad.tokenizers.vocabulary import Vocabulary, vocabulary_of
from rlad.verifiers import CodeTestsVerifierConfig

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """A run whose references are resolved.

    Attributes:
        config: The run's configuration.
        directory: The run directory.
        run_id: Name of the run in Ray actors, Serve applications, shared memory and logs.
        models: The models at their locations, from which every node fetches them.
        student: Directory with the student's configuration and tokenizer on this machine.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer.
        frozen_models: The same of the frozen models that the run starts, by pool.
        vocabulary: Vocabulary of the student: tokens that have an entry in its output layer.
        sampling: Ends of responses of the student, and the number of ids that it samples.
        prompts: Training prompts.
        dataset_fingerprint: Fingerprint of the training prompts.
        evaluation_prompts: Evaluation prompts; none of them is a training prompt.
        teachers_by_prompt: Teachers of every prompt, by prompt id: teacher ids with their weights.
        teacher_prompts: Prompts behind which privileged teachers score, int32 [P], by teacher id and prompt id.
    """

    config: RunConfig
    directory: RunDirectory
    run_id: str
    models: ResolvedModels
    student: Path
    tokenizer_fingerprint: str
    frozen_models: Mapping[str, Path]
    vocabulary: Vocabulary
    sampling: SamplingTokens
    prompts: EncodedPrompts
    dataset_fingerprint: str
    evaluation_prompts: EncodedPrompts
    teachers_by_prompt: Mapping[str, Mapping[str, float]]
    teacher_prompts: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @property
    def prompts_record(self) -> PromptsRecord:
        """Record of the prompts, by which a continued run finds the same ones."""
        return _record_of(self.prompts, self.evaluation_prompts)


def require_isolated_programs(config: RunConfig) -> None:
    """Refuse verifiers that run programs where the sandbox does not hold.

    The verifier workers check their own node at their start. A run on this machine is refused before anything starts.

    Raises:
        ConfigError: This machine isolates programs less than a verifier requires.
    """
    if config.cluster.address is None:
        for verifier in config.verifiers.values():
            if isinstance(verifier, CodeTestsVerifierConfig):
                verifier.build()


def resolve_run(config: RunConfig, directory: RunDirectory) -> ResolvedRun:
    """Resolve the references of a run, and check that its parts fit together.

    Configuration and tokenizer of the models are downloaded to this machine, but not their weights. A continued run
    must find the models at the versions that its directory has recorded.

    Raises:
        ConfigError: A model or the prompts have changed since the run was started; the student's chat template does not
            use an argument of `student.chat_template_kwargs`; or a verifier runs programs of the student and this
            machine isolates them less than it requires.
        PlanError: A model or verifier is missing, evaluation prompts are training prompts, a prompt has no teacher or
            does not fit into its context, or no response could earn a reward.
        DataError: A prompt cannot be read or encoded, or all prompts are too long.
        VocabularyMismatchError: A teacher, the reference or a reward model cannot score the student's tokens.
    """
    require_isolated_programs(config)
    models = resolve_models(config, directory.read_models())
    student = fetch_model(models.student.location, weights=False)
    frozen_models = {pool: fetch_model(model.location, weights=False) for pool, model in models.frozen.items()}
    reward_models = {task: fetch_model(model.location, weights=False) for task, model in models.rewards.items()}
    prepared = _prepared(config, directory, student)
    prompts, evaluation_prompts = prepared.training, prepared.evaluation
    require_group_key(evaluation_prompts, config.evaluation)
    teachers_by_prompt = route_prompts(config, prompts.records)
    scoring_models = {pool: path for pool, path in frozen_models.items() if pool in config.scoring_pools}
    require_one_vocabulary(config, student=student, scoring_models=scoring_models, reward_models=reward_models)
    _require_rewards(config, student, scoring_models, prompts, evaluation_prompts)
    tokenizer = load_tokenizer(student)
    teacher_prompts = privileged_prompts(config, prompts.records, teachers_by_prompt, tokenizer)
    for pool, longest in longest_prompts(config, prompts, teachers_by_prompt, teacher_prompts).items():
        if pool in scoring_models:  # a shared teacher reports its context when it answers
            limit = config.rollout.max_response_tokens
            require_context(pool, context_tokens(scoring_models[pool]), longest, max_response_tokens=limit)
    return ResolvedRun(
        config=config,
        directory=directory,
        run_id=run_id_of(config, directory),
        models=models,
        student=student,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        frozen_models=frozen_models,
        vocabulary=vocabulary_of(tokenizer).within(output_size(student)),
        sampling=sampling_tokens(tokenizer, student, config),
        prompts=prompts,
        dataset_fingerprint=prompts.fingerprint,
        evaluation_prompts=evaluation_prompts,
        teachers_by_prompt=teachers_by_prompt,
        teacher_prompts=teacher_prompts,
    )


def _prepared(config: RunConfig, directory: RunDirectory, student: Path) -> DisjointPrompts:
    """Read the prompts of a run. A continued run reads hub data sets at the recorded commits.

    Raises:
        ConfigError: They are not those that the run was started with.
        PlanError: The student's tokenizer is the reason why they cannot be encoded.
    """
    recorded = directory.recorded_prompts()
    versions = {} if recorded is None else recorded.versions
    try:
        found = disjoint(
            prepare_prompts(pinned(config.prompts, versions), config, student),
            prepare_prompts(pinned(config.evaluation.prompts, versions), config, student),
            config.evaluation.overlap,
        )
    except DataError as error:
        # A special token in a message can be the reason.
        faults = [each.message for each in tokenizer_findings(config, student, {}, ()) if each.level == "error"]
        if not faults:
            raise
        raise PlanError("\n".join([str(error), *faults])) from error
    if recorded is not None:
        directory.require_same_prompts(_record_of(found.training, found.evaluation))
    return found


def _record_of(training: EncodedPrompts, evaluation: EncodedPrompts) -> PromptsRecord:
    return PromptsRecord(
        training=training.fingerprint,
        evaluation=evaluation.fingerprint,
        versions={**training.versions, **evaluation.versions},
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
