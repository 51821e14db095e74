"""The resolved run: models, prompts and teachers of a run, determined once before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.resolution.models import ResolvedModels, resolve_models
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_disjoint, require_group_key
from pipelines.resolution.sampling import sampling_tokens
from pipelines.resolution.teacher_routing import require_one_vocabulary, route_prompts
from pipelines.run.directory import RunDirectory
from pipelines.run.result import run_id_of
from rlad.config import RunConfig
from rlad.data.chat import load_tokenizer, tokenizer_fingerprint
from rlad.data.records import dataset_fingerprint
from rlad.model_fingerprint import output_size
from rlad.models.locations import fetch_model
from rlad.tokenizers.stopping import SamplingTokens
from rlad.tokenizers.vocabulary import Vocabulary, vocabulary_of
from rlad.verifiers import CodeTestsVerifierConfig


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
        ConfigError: A model has changed since the run was started; the student's chat template does not use an argument
            of `student.chat_template_kwargs`; or a verifier runs programs of the student and this machine isolates them
            less than it requires.
        PlanError: A model or verifier is missing, evaluation prompts are training prompts, or a prompt has no teacher.
        DataError: A prompt cannot be read or encoded, or all prompts are too long.
        VocabularyMismatchError: A teacher, the reference or a reward model cannot score the student's tokens.
    """
    require_isolated_programs(config)
    models = resolve_models(config, directory.read_models())
    student = fetch_model(models.student.location, weights=False)
    frozen_models = {pool: fetch_model(model.location, weights=False) for pool, model in models.frozen.items()}
    reward_models = {task: fetch_model(model.location, weights=False) for task, model in models.rewards.items()}
    prompts = prepare_prompts(config.prompts, config, student)
    evaluation_prompts = prepare_prompts(config.evaluation.prompts, config, student)
    require_disjoint(prompts, evaluation_prompts)
    require_group_key(evaluation_prompts, config.evaluation)
    teachers_by_prompt = route_prompts(config, prompts.records)
    scoring_models = {pool: path for pool, path in frozen_models.items() if pool in config.scoring_pools}
    require_one_vocabulary(config, student=student, scoring_models=scoring_models, reward_models=reward_models)
    tokenizer = load_tokenizer(student)
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
        dataset_fingerprint=dataset_fingerprint(prompts.records),
        evaluation_prompts=evaluation_prompts,
        teachers_by_prompt=teachers_by_prompt,
    )
