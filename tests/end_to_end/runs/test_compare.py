"""A comparison from the command line with real components, then continued with another seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.compare import ComparisonDirectory
from pipelines.run.directory import RunDirectory, read_json_lines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STEPS = 2
METHODS = ["trrd", "grpo", "sft"]


def rlad(*arguments: str | Path, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonDirectory, str]:
    """Compare two reinforcement learning methods and an offline one. Return the configuration, directory and output."""
    folder = tmp_path_factory.mktemp("comparison")
    config = folder / "compare.yaml"
    sft = "sft: {overrides: {objective: {name: sft}, offline: {traces_per_prompt: 2, max_prompts: 32}}}"
    methods = f"{{trrd: {{}}, grpo: {{overrides: {{objective: {{name: grpo}}, teacher: null}}}}, {sft}}}"
    config.write_text(
        f"name: smoke\nbase: {SMOKE}\nmethods: {methods}\n"
        f"overrides: {{training.steps: {STEPS}, evaluation.every_steps: 1}}\n"
    )
    directory = ComparisonDirectory(folder / "runs")
    result = rlad("compare", config, "--run-dir", directory.path)
    assert result.returncode == 0, result.stderr
    return config, directory, result.stdout


def test_every_run_is_trained_and_the_start_is_evaluated_once(compared: tuple[Path, ComparisonDirectory, str]) -> None:
    _, directory, _ = compared
    trrd, *others = runs = [RunDirectory(directory.path / f"{method}-seed0") for method in METHODS]
    for run in runs:
        assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2]
        assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, 1, 2]
        assert run.export.is_dir()
        ledger = rlad("ledger", run.path)
        assert ledger.returncode == 0, ledger.stdout
    for run in others:
        assert read_json_lines(run.evaluations)[0] == {
            **read_json_lines(trrd.evaluations)[0],
            "taken_from": "trrd-seed0",
        }
    assert [run.read_config().objective.name for run in runs] == METHODS


def test_results_agree_with_the_recorded_runs(compared: tuple[Path, ComparisonDirectory, str]) -> None:
    _, directory, text = compared
    figures = json.loads(directory.figures.read_text())
    final = {
        method: read_json_lines(RunDirectory(directory.path / f"{method}-seed0").evaluations)[-1]["overall"]["mean"]
        for method in METHODS
    }
    assert {method: figures["accuracy"][method]["all"]["mean"] for method in final} == pytest.approx(final)
    assert {each["method"]: each["difference"] for each in figures["differences"]} == pytest.approx(
        {method: final[method] - final["trrd"] for method in ("grpo", "sft")}
    )
    assert {each["verdict"] for each in figures["differences"]} == {"one seed"}
    assert figures["costs"]["trrd"]["teacher_tokens"] > 0 == figures["costs"]["grpo"]["teacher_tokens"]
    assert "grpo against trrd" in text
    assert directory.page.stat().st_size > 10_000


def test_resume_trains_only_missing_runs(compared: tuple[Path, ComparisonDirectory, str]) -> None:
    config, directory, _ = compared
    grpo, seed1 = (RunDirectory(directory.path / name) for name in ("grpo-seed0", "grpo-seed1"))
    before = grpo.metrics.read_bytes()
    result = rlad("compare", config, "--methods", "grpo", "--seeds", "0,1", "--run-dir", directory.path, "--resume")
    assert result.returncode == 0, result.stderr
    assert "2 runs, 1 already finished" in result.stdout
    assert grpo.metrics.read_bytes() == before
    assert [line["step"] for line in read_json_lines(seed1.evaluations)] == [0, 1, 2]
    assert json.loads(directory.figures.read_text())["seeds"] == [0, 1]


def test_used_directory_is_refused_without_resume(compared: tuple[Path, ComparisonDirectory, str]) -> None:
    config, directory, _ = compared
    result = rlad("compare", config, "--run-dir", directory.path, timeout_s=300)
    assert result.returncode == 1
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr
