"""Routes from prompts to teachers, and checks that each teacher can score the student's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from actors.pool.placement import reward_pool_name
from rlad.config import RunConfig, TeacherMix
from rlad.data.chat import encode_prompts, load_tokenizer, tokenizer_fingerprint
from rlad.data.records import PromptRecord
from rlad.data.teacher_prompts import teacher_record
from rlad.errors import PlanError, VocabularyMismatchError
from rlad.model_fingerprint import output_size
from rlad.teacher.wire_format import TeacherIdentity
from rlad.tokenizers.vocabulary import Vocabulary, scoring_problem, vocabulary_of

TEACHER_KEY = "teacher_id"
"""Metadata key of a prompt for its teacher's id, or for a mapping of ids to weights."""

_NO_LIMIT = 2**31 - 1
_MIX: TypeAdapter[dict[str, float]] = TypeAdapter(TeacherMix)


def route_prompts(config: RunConfig, records: Sequence[PromptRecord]) -> dict[str, Mapping[str, float]]:
    """Return the teachers of every prompt, by prompt id: teacher ids with their weights.

    The mappings are empty if the objective uses no teacher.

    Raises:
        PlanError: A prompt has no teacher, an unknown one, or several that cannot be mixed, or a teacher has no prompt.
    """
    if not config.teacher_pools:
        return {record.id: {} for record in records}
    routes = {record.id: _route(config, record) for record in records}
    unused = sorted(config.teachers_by_id.keys() - {teacher for mix in routes.values() for teacher in mix})
    if unused:
        raise PlanError(
            f"no prompt uses teacher {', '.join(unused)}, which would occupy machines without use: remove it, or route "
            "a task to it"
        )
    return routes


def privileged_prompts(
    config: RunConfig, records: Sequence[PromptRecord], routes: Mapping[str, Mapping[str, float]], tokenizer: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Return the prompts behind which teachers with a `prompt_template` score, int32 [P], by teacher id and prompt id.

    Args:
        config: The run's configuration.
        records: Training prompts.
        routes: Teachers of every prompt, by prompt id.
        tokenizer: The student's. Its chat template is applied, as to the student's prompts.

    Raises:
        DataError: A prompt lacks a value that a template names, or cannot be encoded.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in config.teacher_pools:
        template = config.teachers_by_id[name].prompt_template
        if template is None:
            continue
        own = [teacher_record(record, template) for record in records if name in routes[record.id]]
        encoded = encode_prompts(tokenizer, own, _NO_LIMIT, config.student.chat_template_kwargs)
        found[name] = {record.id: ids for record, ids in zip(own, encoded, strict=True)}
    return found


def _route(config: RunConfig, record: PromptRecord) -> Mapping[str, float]:
    teachers = config.teachers_by_id
    named = record.metadata.get(TEACHER_KEY)
    if named is not None:
        mix = _named_mix(record, named)
    elif record.task in config.teacher_routes:
        mix = config.teacher_routes[record.task]
    elif len(teachers) == 1:
        mix = dict.fromkeys(teachers, 1.0)
    else:
        raise PlanError(
            f"task {record.task} has no teacher: add it to teacher_routes, or give its prompts `{TEACHER_KEY}` "
            f"metadata (prompt {record.id} has none)"
        )
    if unknown := sorted(mix.keys() - teachers.keys()):
        raise PlanError(f"prompt {record.id} names the unknown teacher {unknown[0]}: known are {', '.join(teachers)}")
    if len(mix) > 1 and config.objective.teacher_support is not None:
        raise PlanError(
            f"prompt {record.id} mixes several teachers, but objective {config.objective.name!r} requires the "
            "likeliest tokens of a single teacher: give the prompt one teacher"
        )
    return mix


def _named_mix(record: PromptRecord, named: Any) -> Mapping[str, float]:
    try:
        # Parquet gives every row all keys of the column; keys of other rows have the value None.
        return _MIX.validate_python(
            {key: weight for key, weight in named.items() if weight is not None} if isinstance(named, dict) else named
        )
    except ValidationError as error:
        raise PlanError(
            f"prompt {record.id}: metadata `{TEACHER_KEY}` must be a teacher's id or a mapping of ids to positive "
            f"weights; got {named!r}"
        ) from error


def require_one_vocabulary(
    config: RunConfig, *, student: Path, scoring_models: Mapping[str, Path], reward_models: Mapping[str, Path]
) -> None:
    """Refuse teachers, a reference and reward models that cannot score the student's tokens.

    Args:
        config: The run's configuration.
        student: Directory of the student.
        scoring_models: Directories of the frozen models that score, by pool.
        reward_models: Directories of the reward models, by task.

    Raises:
        VocabularyMismatchError: Naming the pool and the differing tokens.
    """
    vocabulary = vocabulary_of(load_tokenizer(student)).within(output_size(student))
    for pool, path in scoring_models.items():
        require_can_read(pool, path, vocabulary)
    for task, path in reward_models.items():
        require_can_read(reward_pool_name(task), path, vocabulary)


def require_can_read(pool: str, model: Path, student: Vocabulary) -> None:
    """Refuse a model that cannot read the student's token ids. It may have further tokens, and other padding.

    Args:
        pool: Pool of the model.
        model: Directory with its configuration and tokenizer.
        student: Vocabulary of the student.

    Raises:
        VocabularyMismatchError: Naming the pool and the differing tokens.
    """
    problem = scoring_problem(student, vocabulary_of(load_tokenizer(model)), teacher_rows=output_size(model))
    if problem is not None:
        raise vocabulary_mismatch(pool, problem)


def require_can_score(pool: str, identity: TeacherIdentity, config: RunConfig, *, student: Path) -> None:
    """Refuse a shared teacher that cannot score what the run needs. Its properties are known only once it answers.

    Raises:
        PlanError: With what it cannot do.
    """
    if identity.engine == "vllm" and config.rollout.temperature != 1.0:
        raise PlanError(
            f"the {pool}'s vllm engine scores at temperature 1 only, rollout.temperature is "
            f"{config.rollout.temperature:g}: set it to 1, or share a teacher with the transformers engine"
        )
    if config.objective.teacher_support is not None and identity.tokenizer != tokenizer_fingerprint(student):
        raise PlanError(
            f"objective {config.objective.name!r} requires the {pool}'s likeliest tokens, but the {pool} is shared and "
            "has more tokens than the student, so they may be unknown to it: let the run deploy the teacher "
            "(`path`), or use an estimator that needs the sampled tokens only"
        )
    if config.objective.teacher_support == "full":
        if identity.engine == "vllm":
            raise PlanError(
                f"objective {config.objective.name!r} requires the {pool}'s full vocabulary, which the vllm engine "
                "does not give: share a teacher with the transformers engine, or use a number of likeliest tokens"
            )
        require_equal_outputs(pool, identity.vocabulary, output_size(student))


def vocabulary_mismatch(pool: str, problem: str) -> VocabularyMismatchError:
    """Return the error for a pool whose model cannot read the student's token ids."""
    return VocabularyMismatchError(
        f"student and {pool} have different vocabularies: the {pool} reads the student's token ids, but {problem}; use "
        "models with one tokenizer (the student may have fewer tokens)"
    )


def require_equal_outputs(pool: str, size: int, student_size: int) -> None:
    """Refuse output layers of different sizes, whose full distributions cannot be compared.

    Some model families pad their output layers differently.

    Raises:
        PlanError: The sizes differ.
    """
    if size != student_size:
        raise PlanError(
            f"the output layers of {pool} and student have {size} and {student_size} entries, so their full "
            "distributions cannot be compared: use a number of likeliest tokens"
        )
