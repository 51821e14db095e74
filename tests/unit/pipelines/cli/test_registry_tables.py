"""Output of `rlad registry` in a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.cli.tables.registry import history_table, print_difference, print_version, versions_table
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.registry.changes import AliasChange
from rlad.registry.versions import Lineage, ModelFile, ModelVersion, difference

RUN_DIR = "/mnt/shared/experiments/team/runs/nightly-20260131T020000Z-with-a-long-name"
TEACHER = "/mnt/shared/models/Qwen3-8B-Instruct-2507 (0123456789abcdef)"


def evaluation(solved: int) -> EvaluationSummary:
    results = [
        PromptResult(
            prompt_id=f"p{i}", groups=("2",), rewards=(float(i < solved),), response_tokens=(9,), num_truncated=0
        )
        for i in range(10)
    ]
    return summarise(results)


@pytest.fixture
def version() -> ModelVersion:
    return ModelVersion(
        name="kk-student",
        version=12,
        idempotency_key="nightly",
        directory="kk-student/models/nightly",
        files=(ModelFile(path="model.safetensors", bytes=1_200_000_000, sha256="ab" * 32),),
        lineage=Lineage(
            run_id="nightly-1a2b3c4d",
            run_dir=RUN_DIR,
            config_sha256="cd" * 32,
            parent=None,
            base_model="/mnt/shared/models/Qwen3-1.7B-Base-of-last-year",
            teachers={"teacher": TEACHER},
            prompts_fingerprint="0123456789abcdef",
            num_prompts=800,
            steps=20,
            rlad_version="0.1.0",
            git_commit="ef" * 20,
            created_at="2026-01-31T02:00:00+00:00",
        ),
        evaluation=evaluation(9),
        metrics={},
        config={"seed": 1, "student": {"path": "/mnt/shared/models/Qwen3-1.7B-Base-of-last-year"}},
        created_at="2026-01-31T02:00:00.000+00:00",
    )


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_versions_have_one_line_per_alias(console: Console, version: ModelVersion) -> None:
    console.print(versions_table("kk-student", [version], {"production": 12, "best": 12}))
    rows = [line for line in printed(console) if line.startswith("│")]
    assert len(rows) == 2
    for text in ("12", "production", "90.0% (60%-98%)", "2026-01-31 02:00"):
        assert text in rows[0]
    assert "best" in rows[1]
    assert max(map(len, printed(console))) <= 80


def test_paths_of_a_version_are_not_wrapped(console: Console, version: ModelVersion) -> None:
    print_version(console, version, aliases=["production"], path=Path("/mnt/registry/kk-student/models/nightly"))
    lines = printed(console)
    for label, value in (("run directory", RUN_DIR), ("teacher", TEACHER), ("code", "ef" * 20)):
        assert any(line.lstrip().startswith(label) and line.rstrip().endswith(value) for line in lines), label


def test_history_keeps_words_and_versions_in_one_piece(console: Console) -> None:
    change = AliasChange(
        sequence=1,
        kind="rollback",
        alias="production",
        previous=12,
        version=11,
        reason="users report worse answers since yesterday",
        by="user@host",
        at="2026-01-31T02:00:00.000+00:00",
    )
    console.print(history_table([change]))
    text = " ".join(" ".join(line.strip("│ ") for line in printed(console)).split())
    assert "12 -> 11 (rollback)" in text
    assert "2026-01-31 02:00" in text
    for word in change.reason.split():
        assert word in text
    assert max(map(len, printed(console))) <= 80


def test_differences_have_one_line_per_value(console: Console, version: ModelVersion) -> None:
    other = replace(
        version,
        version=13,
        evaluation=evaluation(6),
        config={"seed": 2, "student": {"path": "/mnt/shared/models/Qwen3-1.7B-Base-of-this-year"}},
    )
    print_difference(console, difference(version, other))
    lines = printed(console)
    assert lines[0] == "kk-student@12 -> kk-student@13"
    assert "  all: 90.0% -> 60.0%" in lines
    assert "  seed: 1 -> 2" in lines
    assert any(line.startswith("  student.path: ") and line.endswith("of-this-year") for line in lines)
