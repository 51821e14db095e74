"""Evaluation prompts that are also training prompts are found by their text, and refused or left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning.prompt_findings import source_findings
from pipelines.resolution.overlap import DisjointPrompts, Treatment, disjoint
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts
from rlad.config import PromptFile, PromptMixture, RunConfig, load_run_config
from rlad.errors import PlanError

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_run_config(ROOT / "configs/qwen3_8b_math_30k.yaml")


def file(path: Path, *questions: Any, **settings: Any) -> PromptFile:
    rows = [
        {"id": f"{path.stem}-{number}", "prompt": question, "answer": "1", "task": "math"}
        for number, question in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptFile(path=str(path), **settings)


def prepare(source: Any, config: RunConfig, student: Path) -> EncodedPrompts:
    return prepare_prompts(source, config, student)


def ids(prompts: EncodedPrompts) -> list[str]:
    return [record.id for record in prompts.records]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("question", "other", "settings"),
    [
        ("What is 1 + 1?", "What is 1 + 1?", {}),
        ("What is 1 + 1?", " What is\t1 +\n\n1?\n", {}),
        (user("What is 1 + 1?"), "What is 1 + 1?", {}),
        (user("What is 1 + 1?"), user("What is 1 + 1?"), {"system_prompt": "Think."}),
        (user("What is 1 + 1?"), user("What is 1 + 1?"), {"prompt_suffix": "\nAnswer in a box."}),
        ([{"role": "system", "content": "s"}, *user("caf\u00e9?")], user("cafe\u0301?"), {}),
        ("<What is 1 + 1?>", user("What is 1 + 1?"), {}),  # the template of the test was applied before
    ],
)
def test_same_text_is_found_under_other_ids_and_settings(
    tmp_path: Path, config: RunConfig, student: Path, question: Any, other: Any, settings: dict[str, Any]
) -> None:
    training = prepare(file(tmp_path / "train.jsonl", "2?", question), config, student)
    evaluation = prepare(file(tmp_path / "test.jsonl", other, "3?", **settings), config, student)
    with pytest.raises(PlanError, match=r"1 of 2 evaluation prompts .* for example test-0: .*evaluation.overlap"):
        disjoint(training, evaluation, "refuse")


def test_other_text_is_not_found(tmp_path: Path, config: RunConfig, student: Path) -> None:
    training = prepare(file(tmp_path / "a.jsonl", "1 + 1?", "ab", "two\nlines"), config, student)
    evaluation = prepare(file(tmp_path / "b.jsonl", "1+1?", "AB", "twolines"), config, student)
    found = disjoint(training, evaluation, "refuse")
    assert (found.training, found.evaluation) == (training, evaluation)


@pytest.mark.parametrize(
    ("treatment", "training", "evaluation", "dropped"),
    [
        ("drop_training", ["train-0", "train-2"], ["test-0", "test-1", "test-2"], (2, 0)),
        ("drop_evaluation", ["train-0", "train-1", "train-2", "train-3"], ["test-1"], (0, 2)),
    ],
)
def test_common_prompts_are_left_out_as_set(
    tmp_path: Path,
    config: RunConfig,
    student: Path,
    caplog: pytest.LogCaptureFixture,
    treatment: Treatment,
    training: list[str],
    evaluation: list[str],
    dropped: tuple[int, int],
) -> None:
    train = prepare(file(tmp_path / "train.jsonl", "1?", "22?", "333?", "22?"), config, student)
    test = prepare(file(tmp_path / "test.jsonl", "22?", "4?", "22 ?", " 22?"), config, student)
    test = test.select([0, 1, 3])
    with caplog.at_level(logging.WARNING):
        found = disjoint(train, test, treatment)
    evaluation = ["test-0", "test-1", "test-3"] if treatment == "drop_training" else evaluation
    assert (ids(found.training), ids(found.evaluation)) == (training, evaluation)
    assert [len(tokens) for tokens in found.training.token_ids] == [
        {"train-0": 2, "train-1": 3, "train-2": 4, "train-3": 3}[name] for name in training
    ]
    assert (found.training_dropped, found.evaluation_dropped) == dropped
    assert "in_training_and_evaluation=2" in caplog.text
    kind = treatment.removeprefix("drop_")
    assert [text for _, text in source_findings(config, found)] == [
        f"2 {kind} prompts are left out: they occur in both training and evaluation (evaluation.overlap: refuse)"
    ]


def test_nothing_left_is_refused(tmp_path: Path, config: RunConfig, student: Path) -> None:
    prompts = prepare(file(tmp_path / "train.jsonl", "1?"), config, student)
    for treatment, kind in (("drop_training", "training"), ("drop_evaluation", "evaluation")):
        with pytest.raises(PlanError, match=f"all 1 {kind} prompts occur in both"):
            disjoint(prompts, prompts, treatment)


def test_mixture_keeps_its_sources_when_prompts_are_left_out(tmp_path: Path, config: RunConfig, student: Path) -> None:
    parts = {
        "a": {"weight": 1, "prompts": file(tmp_path / "train.jsonl", "1?", "22?", prompt_suffix=" !")},
        "b": {"weight": 2, "prompts": file(tmp_path / "more.jsonl", "333?", "1?")},
    }
    mixture = PromptMixture.model_validate({"parts": parts})
    training = prepare(mixture, config, student)
    assert ids(training) == ["a/train-0", "a/train-1", "b/more-0", "b/more-1"]
    assert training.mixture is not None
    assert training.mixture.parts == (0, 0, 1, 1)
    found = disjoint(training, prepare(file(tmp_path / "test.jsonl", "1?"), config, student), "drop_training")
    assert ids(found.training) == ["a/train-1", "b/more-0"]
    assert found.training.mixture is not None
    assert (found.training.mixture.parts, found.training.mixture.weights) == ((0, 1), (1, 2))


def test_plan_states_the_shares_of_a_mixture(tmp_path: Path, config: RunConfig, student: Path) -> None:
    parts = {
        "a": {"weight": 1, "prompts": file(tmp_path / "a.jsonl", "1?", "2?")},
        "b": {"weight": 2, "prompts": file(tmp_path / "b.jsonl", "3?")},
    }
    training = prepare(PromptMixture.model_validate({"parts": parts}), config, student)
    evaluation = prepare(file(tmp_path / "c.jsonl", "4?"), config, student)
    [(level, text)] = source_findings(config, DisjointPrompts(training=training, evaluation=evaluation))
    assert (level, text) == (
        "ok",
        "mixture, in each epoch of 3 entries: a 33.3% (1 entries of 2 prompts), b 66.7% (2 entries of 1 prompts)",
    )
    gone = DisjointPrompts(training=training.select([0, 1]), evaluation=evaluation)
    [(level, text)] = source_findings(config, gone)
    assert level == "error"
    assert "part 'b' of the mixture has no prompts to train on" in text
