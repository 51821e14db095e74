"""The answers of prompts are tried on their verifiers before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipelines.resolution.answers import TrialResult, try_answers
from pipelines.resolution.prompts import EncodedPrompts
from rlad.data.records import PromptRecord
from rlad.verifiers import VerifierConfig

FEW = {"numbers": [3, 4, 6], "target": 42}


def prompts(answers: list[str], task: str = "t") -> EncodedPrompts:
    records = [
        PromptRecord(id=f"p{index}", prompt=f"question {index}", task=task, answer=answer)
        for index, answer in enumerate(answers)
    ]
    return EncodedPrompts(
        records=records,
        token_ids=[np.zeros(1, np.int32)] * len(records),
        locations=tuple(f"train.jsonl, line {index + 1}" for index in range(len(records))),
    )


def trials(settings: dict[str, Any], *answers: str, budget_s: float = 60.0) -> TrialResult:
    verifiers = {"t": TypeAdapter(VerifierConfig).validate_python(settings)}
    [result] = try_answers({"training": prompts(list(answers))}, verifiers, seed=1, budget_s=budget_s)
    return result


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"name": "multiple_choice"}, "(B)"),
        ({"name": "knights_knaves"}, "(1) Zoey is a knight\n(2) Liam is a knave"),
        ({"name": "knights_knaves", "form": "compact"}, "TF"),
        ({"name": "countdown"}, json.dumps(FEW)),
    ],
)
def test_readable_answers_pass(settings: dict[str, Any], answer: str) -> None:
    result = trials(settings, answer, answer)
    assert (result.level, result.answers, result.tried) == ("ok", 2, 2)
    assert "all 2 answers tried" in result.message


def test_set_of_unreadable_answers_is_refused_with_rows_and_remedy() -> None:
    result = trials({"name": "multiple_choice"}, "B", "the second one", "B", "42")
    assert result.level == "error"
    assert [where for where, _ in result.unreadable] == ["train.jsonl, line 2", "train.jsonl, line 4"]
    assert "must be one letter of ABCD" in result.message
    assert "`verifiers.t`" in result.message


def test_small_share_of_unreadable_answers_is_a_warning() -> None:
    assert trials({"name": "multiple_choice"}, *["B"] * 19, "?").level == "warning"  # 1 of 20 is 5%
    assert trials({"name": "multiple_choice"}, *["B"] * 18, "?").level == "error"


def test_sample_is_seeded_and_its_size_is_said() -> None:
    answers = ["A"] * 30
    result = trials({"name": "multiple_choice"}, *answers, budget_s=0.0)
    assert (result.answers, result.tried, result.level) == (30, 1, "ok")
    assert "1 of 30 answers" in result.message


def test_mathematical_answers_are_read_in_a_killable_process() -> None:
    settings = {"t": TypeAdapter(VerifierConfig).validate_python({"name": "math_answer"})}
    sets = {
        "training": prompts([r"\frac{1}{2}", "Monday", "080 or 081 (both were accepted)", r"so \boxed{97}", "????"]),
        "evaluation": prompts(["5", "x > 2"]),
    }
    training, evaluation = try_answers(sets, settings, seed=1, budget_s=60)
    assert [where for where, _ in training.unreadable] == ["train.jsonl, line 5"]
    assert training.message.startswith("training prompts of task t: all 5 answers tried with verifier math_answer, 1 ")
    assert "cannot be read as mathematics or words" in training.message
    assert (evaluation.prompts, evaluation.level) == ("evaluation", "ok")


def test_function_that_fails_on_answers_is_reported_and_its_verdicts_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answers_need_numbers.py").write_text("def judge(response, answer):\n    return int(answer) == 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    result = trials({"name": "python_function", "path": "answers_need_numbers:judge"}, "5", "6", "six")
    assert [where for where, _ in result.unreadable] == ["train.jsonl, line 3"]
    assert "invalid literal for int()" in result.message


def test_verifier_that_cannot_be_built_on_this_machine_is_left_to_the_plan() -> None:
    settings = {
        "t": TypeAdapter(VerifierConfig).validate_python({"name": "python_function", "path": "elsewhere:judge"})
    }
    assert list(try_answers({"training": prompts(["5"])}, settings, seed=1)) == []
