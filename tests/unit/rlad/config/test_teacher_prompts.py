"""Prompts of privileged teachers: what a template replaces, and what it refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rlad.config import ServiceTeacherConfig, TeacherConfig, TeacherServiceConfig, load_run_config
from rlad.data.records import PromptRecord
from rlad.data.teacher_prompts import teacher_record
from rlad.errors import ConfigError, DataError

RECORD = PromptRecord(
    id="7", task="math", prompt="What is {1} + 1?", answer="2", metadata={"solution": "1 + 1 = {answer}", "hint": None}
)


def test_fields_are_replaced_by_the_values_as_they_are() -> None:
    """Braces of a value are no fields, and braces around anything but a name are literal."""
    found = teacher_record(RECORD, "{question} Known: {metadata.solution}, \\boxed{{answer}}, {}, { question }")
    assert found.prompt == "What is {1} + 1? Known: 1 + 1 = {answer}, \\boxed{2}, {}, { question }"
    assert (found.id, found.task, found.answer) == (RECORD.id, RECORD.task, RECORD.answer)


def test_last_message_is_replaced_and_the_others_are_kept() -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    record = PromptRecord(id="8", task="math", prompt=messages, answer="2")
    assert teacher_record(record, "{question}\nReference: {answer}").prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?\nReference: 2"},
    )
    assert record.prompt == messages


@pytest.mark.parametrize("key", ["hint", "proof"])
def test_prompt_without_a_named_value_is_refused(key: str) -> None:
    with pytest.raises(DataError, match=f"prompt '7' has no metadata '{key}', which prompt_template .* hint, solution"):
        teacher_record(RECORD, f"{{question}} {{metadata.{key}}}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question} {anwser}", "unknown field {anwser}; expected {question}, {answer} or {metadata.KEY}"),
        ("{answer}", "must contain {question}"),
        ("", "must contain {question}"),
    ],
)
def test_template_with_a_wrong_field_is_refused(template: str, message: str) -> None:
    for settings in ({"path": "/m"}, {"service": "kk"}):
        kind = TeacherConfig if "path" in settings else ServiceTeacherConfig
        with pytest.raises(ValidationError) as refused:
            kind.model_validate({**settings, "prompt_template": template})
        assert message in str(refused.value)


def test_template_belongs_to_a_run_whose_teacher_scores() -> None:
    with pytest.raises(ValidationError, match="prompt_template belongs to a run"):
        TeacherServiceConfig(path="/m", prompt_template="{question}")
    with pytest.raises(ConfigError, match="offline runs do not support teacher.prompt_template"):
        load_run_config("configs/offline_kk_cpu.yaml", ["teacher.prompt_template='{question}'"])
