"""Prepared prompts: over-long ones are left out and counted, and errors name file and row."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts
from rlad.config import (
    HubPrompts,
    KnightsKnavesPrompts,
    PromptFile,
    PromptMixture,
    PromptSource,
    RunConfig,
    load_run_config,
)
from rlad.config.prompts import pinned
from rlad.errors import DataError, PlanError

ROOT = Path(__file__).parents[4]
ROWS = [{"id": f"p{length}", "prompt": "x" * length, "task": "math", "answer": "1"} for length in (3, 8, 9, 2)]


def prepare(folder: Path, rows: list[Any], student: Path, **settings: Any) -> EncodedPrompts:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _prepare(PromptFile(path=str(path), **settings), student)


def _prepare(source: PromptSource, student: Path) -> EncodedPrompts:
    config: RunConfig = load_run_config(
        ROOT / "configs/qwen3_8b_math_30k.yaml", ["rollout.max_prompt_tokens=8", "verifiers.math={name: math_answer}"]
    )
    return prepare_prompts(source, config, student)


def test_longer_prompts_are_left_out_and_counted(
    tmp_path: Path, student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = prepare(tmp_path, ROWS, student)
    assert [record.id for record in prompts.records] == ["p3", "p8", "p2"]
    assert [len(ids) for ids in prompts.token_ids] == [3, 8, 2]
    assert prompts.too_long == 1
    assert "too_long=1 kept=3 rollout.max_prompt_tokens=8" in caplog.text
    caplog.clear()
    assert prepare(tmp_path, ROWS[:2], student).too_long == 0
    assert caplog.text == ""


def test_set_of_only_longer_prompts_is_refused(tmp_path: Path, student: Path) -> None:
    rows = [{**ROWS[2], "id": "a", "prompt": "x" * 12}, ROWS[2]]
    with pytest.raises(DataError, match="all 2 prompts have more than 8 tokens, the shortest 9; raise rollout"):
        prepare(tmp_path, rows, student)


def test_generated_prompts_are_filtered_too(student: Path) -> None:
    config = load_run_config(ROOT / "configs/smoke_cpu.yaml", ["rollout.max_prompt_tokens=14"])
    source = KnightsKnavesPrompts(people={2: 1, 3: 1}, count=40, split="train", form="compact")
    prompts = prepare_prompts(source, config, student)
    assert 0 < len(prompts.records) == 40 - prompts.too_long < 40
    assert max(map(len, prompts.token_ids)) <= 14


def test_prompt_that_cannot_be_encoded_is_refused_with_file_and_row(tmp_path: Path, student: Path) -> None:
    baked = {"id": "b", "prompt": [{"role": "user", "content": "[INST] x"}], "task": "math", "answer": "1"}
    with pytest.raises(DataError) as refusal:
        prepare(tmp_path, [ROWS[0], baked], student)
    assert str(refusal.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2: prompt 'b': a message contains")
    assert "columns: {prompt: prompt.0.content}" in str(refusal.value)
    prompts = prepare(tmp_path, [baked], student, columns={"prompt": "prompt.0.content"})
    assert prompts.records[0].prompt == "[INST] x"


def test_task_without_verifier_names_the_setting(tmp_path: Path, student: Path) -> None:
    row = {"question": "x", "answer": "1"}
    with pytest.raises(PlanError, match="no verifier for task default.*with `task` or `columns"):
        prepare(tmp_path, [row], student)
    [record] = prepare(tmp_path, [row], student, task="math").records
    assert (record.prompt, record.task) == (({"role": "user", "content": "x"},), "math")


def test_dropped_rows_and_duplicates_are_logged(
    tmp_path: Path, student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [ROWS[0], {**ROWS[0], "id": "same"}, {**ROWS[0], "id": "n", "answer": None}, ROWS[1]]
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path, rows, student, invalid_rows="drop")
    assert "kept=3 duplicates_dropped=0 duplicates_kept=1 other_answers=0 invalid_dropped=1" in caplog.text


def test_hub_data_sets_of_a_continued_run_are_read_at_the_recorded_commits() -> None:
    hub = HubPrompts(dataset="team/gsm", config="main", split="test", revision="main")
    other = HubPrompts(dataset="team/gsm", config="main")
    commit = "0" * 40
    versions = {"hub data set team/gsm, config main, split test": commit}
    assert pinned(hub, versions) == HubPrompts(dataset="team/gsm", config="main", split="test", revision=commit)
    assert pinned(other, versions) == other
    mixture = PromptMixture.model_validate({"parts": {"a": {"prompts": hub}, "b": {"prompts": other}}})
    found = pinned(mixture, versions)
    assert isinstance(found, PromptMixture)
    assert [part.prompts for part in found.parts.values()] == [pinned(hub, versions), other]
