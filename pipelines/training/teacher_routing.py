"""Which teachers score which prompts, and whether they can: settled before an engine starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.pool.placement import reward_pool_name
from rlad.config import RunConfig, TeacherMix
from rlad.data.chat import tokenizer_fingerprint
from rlad.data.records import PromptRecord
from rlad.errors import PlanError, VocabularyMismatchError
from rlad.model_fingerprint import output_size
from rlad.models.references import resolve_model
from rlad.teacher.wire_format import TeacherIdentity
from rlad.verifiers import reward_models

TEACHER_KEY = "teacher_id"
"""In a prompt's metadata: a teacher's id, or a mapping of ids to weights."""

_MIX: TypeAdapter[dict[str, float]] = TypeAdapter(TeacherMix)


def route_prompts(config: RunConfig, records: Sequence[PromptRecord]) -> dict[str, Mapping[str, float]]:
    """The teachers of every prompt, by prompt id: teacher ids with their weights. Empty mappings where the objective uses no teacher.

    Raises:
        PlanError: a prompt without a teacher, or with an unknown one; several where they cannot be mixed; a teacher that no prompt has.
    """
    if not config.teacher_pools:
        return {record.id: {} for record in records}
    routes = {record.id: _route(config, record) for record in records}
    unused = sorted(config.teachers_by_id.keys() - {teacher for mix in routes.values() for teacher in mix})
    if unused:
        raise PlanError(
            f"no prompt is for teacher {', '.join(unused)}, which would hold machines for nothing: remove it, or route a task to it"
        )
    return routes


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
            f"task {record.task} has no teacher: add it to teacher_routes, or give its prompts `{TEACHER_KEY}` metadata (prompt {record.id} has none)"
        )
    if unknown := sorted(mix.keys() - teachers.keys()):
        raise PlanError(f"prompt {record.id} names the unknown teacher {unknown[0]}: there are {', '.join(teachers)}")
    if len(mix) > 1 and config.objective.teacher_support is not None:
        raise PlanError(
            f"prompt {record.id} mixes several teachers, and objective {config.objective.name!r} wants each token's likeliest tokens of one: "
            "give it one teacher"
        )
    return mix


def _named_mix(record: PromptRecord, named: Any) -> Mapping[str, float]:
    try:
        # Parquet gives every row of a column all keys, those that others have with None.
        return _MIX.validate_python(
            {key: weight for key, weight in named.items() if weight is not None} if isinstance(named, dict) else named
        )
    except ValidationError as error:
        raise PlanError(
            f"prompt {record.id}: metadata `{TEACHER_KEY}` is a teacher's id, or a mapping of ids to positive weights; got {named!r}"
        ) from error


def require_one_vocabulary(config: RunConfig) -> None:
    """Refuse teachers, a reference and reward models that cannot score the student's tokens.

    Raises:
        VocabularyMismatchError: naming the pool.
        PlanError: no such model, or output layers of different sizes where the teacher's whole vocabulary is compared with the student's.
    """
    student = resolve_model(config.student.path)
    fingerprint = tokenizer_fingerprint(student)
    for pool, model in config.scoring_pools.items():
        path = resolve_model(model.path)
        if tokenizer_fingerprint(path) != fingerprint:
            raise vocabulary_mismatch(pool)
        if config.objective.teacher_support == "full" and pool != "reference":
            require_equal_outputs(pool, output_size(path), output_size(student))
    for task, reward_model in reward_models(config.verifiers).items():
        if tokenizer_fingerprint(reward_model.path) != fingerprint:
            raise vocabulary_mismatch(reward_pool_name(task))


def require_can_score(pool: str, identity: TeacherIdentity, config: RunConfig) -> None:
    """Refuse a shared teacher, of which nothing is known before it is asked, that cannot score what the run wants scored.

    Raises:
        PlanError: what it cannot do.
    """
    if identity.engine == "vllm" and config.rollout.temperature != 1.0:
        raise PlanError(
            f"the {pool}'s vllm engine scores at temperature 1 only: set rollout.temperature to 1, or share one with the transformers engine"
        )
    if config.objective.teacher_support == "full":
        if identity.engine == "vllm":
            raise PlanError(
                f"objective {config.objective.name!r} wants the {pool}'s full vocabulary, which the vllm engine does not give: share one with the "
                "transformers engine, or take a number of likeliest tokens"
            )
        require_equal_outputs(pool, identity.vocabulary, output_size(resolve_model(config.student.path)))


def vocabulary_mismatch(pool: str) -> VocabularyMismatchError:
    return VocabularyMismatchError(
        f"student and {pool} have different vocabularies: the {pool} scores the student's token ids, so both must share one tokenizer"
    )


def require_equal_outputs(pool: str, size: int, student_size: int) -> None:
    """Raises:
    PlanError: over the full vocabulary, entries of one model have no counterpart in the other (some families pad their output layers differently).
    """
    if size != student_size:
        raise PlanError(
            f"the output layers of {pool} and student have {size} and {student_size} entries, so their full distributions cannot be compared: "
            "take a number of likeliest tokens"
        )
