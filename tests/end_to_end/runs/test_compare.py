"""A comparison from the command line with real components, then continued with another method."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.compare import ComparisonDirectory
from pipelines.run.directory import RunDirectory, read_json_lines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STEPS = 2
METHODS = ["trrd", "sft"]


def rlad(*arguments: str | Path, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison of one method, continued with a second one.

    Attributes:
        config: Configuration file.
        directory: Directory of the comparison.
        metrics_before: Metrics file of the first method before the comparison was continued.
        output: Output of the continued comparison.
    """

    config: Path
    directory: ComparisonDirectory
    metrics_before: bytes
    output: str


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Train a method of reinforcement learning, then continue with an offline one."""
    folder = tmp_path_factory.mktemp("comparison")
    config = folder / "compare.yaml"
    sft = "sft: {overrides: {objective: {name: sft}, offline: {traces_per_prompt: 2, max_prompts: 32}}}"
    config.write_text(
        f"name: smoke\nbase: {SMOKE}\nmethods: {{trrd: {{}}, {sft}}}\n"
        f"overrides: {{training.steps: {STEPS}, evaluation.every_steps: 1}}\n"
    )
    directory = ComparisonDirectory(folder / "runs")
    first = rlad("compare", config, "--methods", "trrd", "--run-dir", directory.path)
    assert first.returncode == 0, first.stderr
    before = RunDirectory(directory.path / "trrd-seed0").metrics.read_bytes()
    continued = rlad("compare", config, "--run-dir", directory.path, "--resume")
    assert continued.returncode == 0, continued.stderr
    return Compared(config=config, directory=directory, metrics_before=before, output=continued.stdout)


def test_every_run_is_trained_and_the_start_is_evaluated_once(compared: Compared) -> None:
    directory = compared.directory
    trrd, sft = runs = [RunDirectory(directory.path / f"{method}-seed0") for method in METHODS]
    for run in runs:
        assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2]
        assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, 1, 2]
        assert run.export.is_dir()
        ledger = rlad("ledger", run.path)
        assert ledger.returncode == 0, ledger.stdout
    assert read_json_lines(sft.evaluations)[0] == {**read_json_lines(trrd.evaluations)[0], "taken_from": "trrd-seed0"}
    assert [run.read_config().objective.name for run in runs] == METHODS


def test_results_agree_with_the_recorded_runs(compared: Compared) -> None:
    directory = compared.directory
    figures = json.loads(directory.figures.read_text())
    final = {
        method: read_json_lines(RunDirectory(directory.path / f"{method}-seed0").evaluations)[-1]["overall"]["mean"]
        for method in METHODS
    }
    assert {method: figures["accuracy"][method]["all"]["mean"] for method in final} == pytest.approx(final)
    assert {each["method"]: each["difference"] for each in figures["differences"]} == pytest.approx(
        {"sft": final["sft"] - final["trrd"]}
    )
    assert {each["verdict"] for each in figures["differences"]} == {"one seed"}
    assert figures["costs"]["trrd"]["teacher_tokens"] > 0
    assert "sft against trrd" in compared.output
    assert directory.page.stat().st_size > 10_000


def test_resume_trains_only_missing_runs(compared: Compared) -> None:
    assert "2 runs, 1 already finished" in compared.output
    assert RunDirectory(compared.directory.path / "trrd-seed0").metrics.read_bytes() == compared.metrics_before


def test_used_directory_is_refused_without_resume(compared: Compared) -> None:
    result = rlad("compare", compared.config, "--run-dir", compared.directory.path, timeout_s=300)
    assert result.returncode == 1
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr
