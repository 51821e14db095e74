"""Every change of data, tokenizer, chat template or model changes the fingerprint of that input, and of no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.resolution.models import ResolvedModels
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.resolution.run_inputs import input_fingerprints
from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config
from rlad.data.chat import encode_prompts, load_tokenizer, tokenizer_fingerprint
from rlad.data.records import PromptRecord, dataset_fingerprint
from rlad.errors import CorruptFileError
from rlad.integrity.manifest import write_manifest
from rlad.models.locations import pin_model
from rlad.tokenizers.stopping import SamplingTokens
from rlad.tokenizers.vocabulary import vocabulary_of

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
TRAINING = [PromptRecord(id=f"p{i}", prompt=text, task="knights_knaves", answer="T") for i, text in enumerate("Ab")]
EVALUATION = [PromptRecord(id="e", prompt="C:c", task="knights_knaves", answer="F", metadata={"people": 2})]
NAMES = {
    "prompts": "the training prompts (prompts)",
    "evaluation": "the evaluation prompts (evaluation.prompts)",
    "tokenizer": "the student's tokenizer",
    "template": "the student's chat template",
    "student": "the student (student.path)",
}


@pytest.fixture
def student(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_model(), tmp_path / "student"))


def fingerprints(
    student: Path, training: list[PromptRecord] = TRAINING, evaluation: list[PromptRecord] = EVALUATION
) -> dict[str, str]:
    tokenizer = load_tokenizer(student)
    encoded = [
        EncodedPrompts(records=records, token_ids=encode_prompts(tokenizer, records, 16))
        for records in (training, evaluation)
    ]
    return input_fingerprints(
        ResolvedRun(
            config=load_run_config(SMOKE, [f"student.path={student}"]),
            directory=RunDirectory("unused"),
            run_id="unused",
            models=ResolvedModels(student=pin_model(str(student)), frozen={"teacher": pin_model(str(student))}),
            student=student,
            tokenizer_fingerprint=tokenizer_fingerprint(student),
            frozen_models={"teacher": student},
            vocabulary=vocabulary_of(tokenizer),
            sampling=SamplingTokens(),
            prompts=encoded[0],
            dataset_fingerprint=dataset_fingerprint(training),
            evaluation_prompts=encoded[1],
            teachers_by_prompt={},
        )
    )


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys() == set(NAMES.values())
    return {name for name, found in after.items() if found != before[name]}


def test_one_changed_row_changes_the_fingerprint_of_its_prompts_only(student: Path) -> None:
    before = fingerprints(student)
    assert fingerprints(student) == before
    other_answer = [TRAINING[0], replace(TRAINING[1], answer="F")]
    assert changed(before, fingerprints(student, training=other_answer)) == {NAMES["prompts"]}
    assert changed(before, fingerprints(student, training=TRAINING[::-1])) == {NAMES["prompts"]}
    other_metadata = [replace(EVALUATION[0], metadata={"people": 3})]
    assert changed(before, fingerprints(student, evaluation=other_metadata)) == {NAMES["evaluation"]}


def test_template_end_token_and_weights_have_fingerprints_of_their_own(student: Path) -> None:
    before = fingerprints(student)
    (student / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with_template = fingerprints(student)
    assert changed(before, with_template) == {NAMES["template"]}

    settings = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "F"}))
    assert changed(with_template, fingerprints(student)) == {NAMES["tokenizer"]}
    (student / "tokenizer_config.json").write_text(json.dumps(settings))

    flip_last_bit(student / "model.safetensors")
    assert changed(with_template, fingerprints(student)) == {NAMES["student"]}


def test_a_damaged_model_with_a_manifest_is_refused(student: Path) -> None:
    write_manifest(student)
    fingerprints(student)
    flip_last_bit(student / "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is damaged: .* Copy the model again"):
        fingerprints(student)
