"""Prompts from reasoning-gym."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from rlad.config import ReasoningGymPrompts
from rlad.data.prompts import load_prompts
from rlad.data.reasoning_gym import INSTRUCTION, split_of
from rlad.data.records import PromptRecord, dataset_fingerprint
from rlad.errors import ConfigError, DataError

pytest.importorskip(
    "reasoning_gym",
    reason="reasoning-gym is not installed; `make test` installs it if a C compiler is available, "
    "or run pip install 'rlad[reasoning-gym]'",
)


def problems(split: str = "train", **settings: Any) -> list[PromptRecord]:
    return load_prompts(ReasoningGymPrompts(**{"dataset": "chain_sum", "size": 150, "split": split, **settings}))


def questions(records: list[PromptRecord]) -> set[str]:
    return {record.prompt[1]["content"] for record in records}  # type: ignore[index]


def test_problems_are_distinct_and_request_an_answer_in_tags() -> None:
    records = problems()
    assert len(questions(records)) == len({record.id for record in records}) == 150
    assert {record.task for record in records} == {"chain_sum"}
    assert all(record.prompt[0] == {"role": "system", "content": INSTRUCTION} for record in records)
    assert "<answer>" in INSTRUCTION


def test_splits_are_disjoint_for_any_seed_and_settings() -> None:
    few = {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
    }  # few problems, so seeds draw the same ones
    first, second = questions(problems(size=60, settings=few)), questions(problems(size=60, seed=7, settings=few))
    assert first & second
    held_out = questions(problems("evaluation", size=15, seed=1, settings=few))
    assert not held_out & (first | second)
    assert {split_of(question) for question in first | second} == {"train"}
    assert {split_of(question) for question in held_out} == {"evaluation"}


def test_task_with_too_few_problems_is_refused() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(
        DataError,
        match=r"found only \d+ distinct problems of reasoning-gym's task 'chain_sum' in the evaluation split, "
        "expected 999",
    ):
        problems("evaluation", size=999, settings=few)


def test_settings_reach_the_task() -> None:
    for question in questions(problems(size=10, settings={"min_terms": 8, "max_terms": 8})):
        assert len(re.findall(r"\d [+-] ", question)) == 7
    with pytest.raises(ConfigError, match="'chain_sum' rejects the settings"):
        problems(settings={"terms": 8})
    with pytest.raises(ConfigError, match="'chain_sum' rejects the settings"):
        problems(settings={"min_terms": 9, "max_terms": 2})
    with pytest.raises(ValidationError, match="`settings` must not contain size"):
        problems(settings={"size": 8})


def test_seed_determines_the_problems_in_every_process() -> None:
    program = (
        "from rlad.config import ReasoningGymPrompts\nfrom rlad.data.prompts import load_prompts\nfrom "
        "rlad.data.records import dataset_fingerprint\n"
        "print(dataset_fingerprint(load_prompts(ReasoningGymPrompts(dataset='chain_sum', size=150, split='train'))))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "5",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert elsewhere == dataset_fingerprint(problems())
    assert elsewhere != dataset_fingerprint(problems(seed=1))


def test_task_with_hash_dependent_problems_requires_fixed_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(DataError, match="set PYTHONHASHSEED=0"):
        problems(dataset="ransom_note", size=2)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(problems(dataset="ransom_note", size=2)) == 2
