"""Tests of the prompts for real models, and of the lock files of the packages that carry the models."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from examples.real_models.arithmetic import EXAMPLES, STORIES, make_records
from examples.real_models.fetch import CARRIERS
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.verifiers import build_verifier


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_answers_follow_from_the_numbers_in_the_text() -> None:
    expected = {
        "addition": lambda a, b: a + b,
        "subtraction": lambda a, b: a - b,
        "multiplication": lambda a, b: a * b,
    }
    seen: Counter[str] = Counter()
    for record in make_records(300):
        operation = record.metadata["operation"]
        assert int(record.answer) == expected[operation](*numbers(record.prompt[-1]["content"]))
        seen[operation] += 1
    assert seen == {"addition": 100, "subtraction": 100, "multiplication": 100}


def test_worked_examples_are_right_and_end_as_the_verifier_reads_them() -> None:
    verifier = build_verifier({"name": "math_answer"})
    question, answer, other_question, other_answer = (message["content"] for message in EXAMPLES)
    assert verifier.verify(answer, str(sum(numbers(question)))).reward == 1
    assert verifier.verify(other_answer, str(numbers(other_question)[0] - numbers(other_question)[1])).reward == 1


def test_problems_are_distinct_and_depend_on_the_seed_alone() -> None:
    records = make_records(500, seed=3)
    assert len({record.prompt[-1]["content"] for record in records}) == 500
    assert make_records(500, seed=3) == records
    assert make_records(500, seed=4) != records


def test_prompt_file_is_read_back_and_its_answers_are_verified(tmp_path: Path) -> None:
    records = make_records(len(STORIES))
    write_prompt_file(records, tmp_path / "arithmetic.jsonl")
    assert read_prompt_file(tmp_path / "arithmetic.jsonl") == records
    verifier = build_verifier({"name": "math_answer"})
    for record in records:
        right, wrong = f"They have {record.answer} now.", f"They have {int(record.answer) + 1} now."
        assert verifier.verify(right, record.answer).reward == 1
        assert verifier.verify(wrong, record.answer).reward == 0


@pytest.mark.parametrize("name", CARRIERS)
def test_packages_that_carry_a_model_are_pinned_by_hash(name: str) -> None:
    lines = [line for line in CARRIERS[name].lock.read_text().splitlines() if not line.startswith("#")]
    assert any(line.startswith("gguf==") for line in lines)
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
