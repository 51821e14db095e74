"""The resolved run: models, prompts and teachers of a run, determined once before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.resolution.overlap import DisjointPrompts, disjoint
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_group_key
from pipelines.resolution.teacher_routing import require_one_vocabulary, route_prompts
from pipelines.run.directory import PromptsRecord, RunDirectory
from pipelines.run.result import run_id_of
from rlad.config import RunConfig
from rlad.config.prompts import pinned
from rlad.data.chat import tokenizer_fingerprint
from rlad.models.references import resolve_model
from rlad.verifiers import CodeTestsVerifierConfig


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

    @property
    def prompts_record(self) -> PromptsRecord:
        """Record of the prompts, by which a continued run finds the same ones."""
        return PromptsRecord(
            training=self.dataset_fingerprint,
            evaluation=self.evaluation_prompts.fingerprint,
            versions={**self.prompts.versions, **self.evaluation_prompts.versions},
        )


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

    Raises:
        ConfigError: A verifier runs programs of the student, and this machine isolates them less than it requires.
        PlanError: A model or verifier is missing, evaluation prompts are training prompts, or a prompt has no teacher.
        DataError: A prompt cannot be read or encoded, or all prompts are too long.
        ConfigError: A continued run has other prompts than it was started with.
        VocabularyMismatchError: A teacher, the reference or a reward model cannot score the student's tokens.
    """
    require_isolated_programs(config)
    student = resolve_model(config.student.path)
    started = config.frozen_models if config.needs_teacher else config.scoring_pools
    frozen_models = {pool: resolve_model(model.path) for pool, model in started.items()}
    prepared = _prepared(config, directory, student)
    prompts, evaluation_prompts = prepared.training, prepared.evaluation
    require_group_key(evaluation_prompts, config.evaluation)
    teachers_by_prompt = route_prompts(config, prompts.records)
    scoring_models = {pool: path for pool, path in frozen_models.items() if pool in config.scoring_pools}
    require_one_vocabulary(config, student=student, scoring_models=scoring_models)
    return ResolvedRun(
        config=config,
        directory=directory,
        run_id=run_id_of(config, directory),
        student=student,
        tokenizer_fingerprint=tokenizer_fingerprint(student),
        frozen_models=frozen_models,
        prompts=prompts,
        dataset_fingerprint=prompts.fingerprint,
        evaluation_prompts=evaluation_prompts,
        teachers_by_prompt=teachers_by_prompt,
    )


def _prepared(config: RunConfig, directory: RunDirectory, student: Path) -> DisjointPrompts:
    """Read the prompts of a run. A continued run reads hub data sets at the recorded commits.

    Raises:
        ConfigError: They are not those that the run was started with.
    """
    recorded = directory.recorded_prompts()
    versions = {} if recorded is None else recorded.versions
    found = disjoint(
        prepare_prompts(pinned(config.prompts, versions), config, student),
        prepare_prompts(pinned(config.evaluation.prompts, versions), config, student),
        config.evaluation.overlap,
    )
    if recorded is not None:
        directory.require_same_prompts(
            PromptsRecord(
                training=found.training.fingerprint,
                evaluation=found.evaluation.fingerprint,
                versions={**found.training.versions, **found.evaluation.versions},
            )
        )
    return found
