"""A whole run from the command line with every real component: killed, continued, and its student loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.evaluation.accuracy import EvaluationSummary, majority_vote
from rlad.samples.reading import read_samples

from ..live_run import LiveRun

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CONFIGS = Path(__file__).parents[3] / "configs"
STEPS, REFILLS = 6, 3
# In the environment of all processes of the run. No file of the run may hold them.
PLANTED = {
    "RLAD_TEST_API_KEY": "planted-1-f3a91c07be52",
    "DATABASE_URL": "postgresql://rlad:planted-2-77d0@nowhere/rlad",
}
OVERRIDES = [f"training.steps={STEPS}", f"training.max_refills={REFILLS}", "samples.share=1"]


def rlad(*arguments: str | Path, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    environment = {**os.environ, **PLANTED}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A smoke run with dynamic sampling whose driver was killed between two checkpoints and then continued."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "smoke")
    arguments = [
        sys.executable,
        "-m",
        "pipelines",
        "run",
        str(CONFIGS / "smoke_cpu.yaml"),
        *OVERRIDES,
        "--run-dir",
        str(directory.path),
    ]
    environment = {**os.environ, **PLANTED}
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    ) as process:
        LiveRun(process, directory).wait_for_steps(3)
        os.killpg(process.pid, signal.SIGKILL)
    continued = rlad("run", CONFIGS / "smoke_cpu.yaml", *OVERRIDES, "--run-dir", directory.path, "--resume")
    assert continued.returncode == 0, continued.stderr
    assert "before" in continued.stdout
    assert "after" in continued.stdout
    assert "planted" not in continued.stdout + continued.stderr
    return directory


def test_no_file_of_the_run_holds_a_secret_of_its_environment(run: RunDirectory) -> None:
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if b"planted-" in path.read_bytes()] == []


def test_every_prompt_is_trained_on_once_although_the_driver_was_killed(run: RunDirectory) -> None:
    result = rlad("ledger", run.path, "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["committed"] == STEPS * 8
    assert counts["trained_steps"] == STEPS
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert [counts[state] for state in ("issued", "sampled", "scored", "claimed")] == [0, 0, 0, 0]
    dropped = [line["rollout/dropped_groups"] for line in read_json_lines(run.metrics)]
    assert counts["dropped"] == sum(dropped)
    assert 0 < max(dropped) <= REFILLS


def test_metrics_and_evaluations_have_no_gaps_or_repetitions(run: RunDirectory) -> None:
    assert [line["step"] for line in read_json_lines(run.metrics)] == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, 3, STEPS]
    assert "| all | 24 |" in (run.export / "README.md").read_text()
    for path in (run.config, run.tensorboard, run.ledger, run.checkpoints, run.export, run.timeline, run.report):
        assert path.exists(), path


def test_samples_are_those_of_the_metrics_although_the_driver_was_killed(run: RunDirectory) -> None:
    rows = read_samples(run.samples, limit=10_000)
    responses = [(row["group_uid"], row["response_index"]) for row in rows]
    assert len(responses) == len(set(responses))
    rewards = defaultdict(list)
    for row in rows:
        rewards[row["step"]].append(row["reward"])
        assert (row["teacher_logprobs"] is None) == row["is_dropped"]
    recorded = {line["step"]: line["reward/mean"] for line in read_json_lines(run.metrics)}
    assert rewards.keys() >= {3, 4, 5, 6}  # the kill may have cost the part of the step before the checkpoint
    for step, found in rewards.items():
        assert sum(found) / len(found) == pytest.approx(recorded[step])


def test_engine_and_learner_agree_on_log_probabilities_in_every_step(run: RunDirectory) -> None:
    gaps = [
        line["learner/logprob_gap_max"] for line in read_json_lines(run.metrics) if "learner/logprob_gap_max" in line
    ]
    assert gaps
    assert max(gaps) <= 1e-4


def test_the_student_changed_and_loads_with_plain_transformers(run: RunDirectory) -> None:
    from rlad.models.locations import resolve_model

    student = AutoModelForCausalLM.from_pretrained(run.export)
    start = AutoModelForCausalLM.from_pretrained(resolve_model(run.read_config().student.path))
    assert len(AutoTokenizer.from_pretrained(run.export)("A:b;")["input_ids"]) == 4
    moved = [not torch.equal(new, old) for new, old in zip(student.parameters(), start.parameters(), strict=True)]
    assert all(moved)


def test_the_student_loads_with_plain_vllm_and_is_evaluated(run: RunDirectory, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    settings = ["evaluation.samples=4", "evaluation.group_by=[task, people]"]
    settings += ["evaluation.latency={requests: 30, concurrency: 4}"]
    result = rlad("eval", run.export, "--config", CONFIGS / "smoke_cpu.yaml", *settings, "--output", output)
    assert result.returncode == 0, result.stderr
    figures = json.loads((output / "evaluation.json").read_text())
    latency = figures["latency"]["evaluation"]
    assert (latency["requests"], latency["concurrency"]) == (30, 4)
    assert 0 < latency["median_s"] <= latency["p95_s"]
    assert 1 < latency["response_tokens"] <= 48
    assert "latency on evaluation: p95" in result.stdout
    summary = EvaluationSummary.from_dict(figures["sets"]["evaluation"])
    lines = read_json_lines(output / "responses-evaluation.jsonl")
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_prompt[line["prompt_id"]].append(line)
    assert {len(each) for each in by_prompt.values()} == {4}
    assert {prompt: sum(line["reward"] for line in each) / 4 for prompt, each in by_prompt.items()} == summary.prompts
    assert list(summary.groups) == ["people 2", "task knights_knaves"]
    assert summary.groups["people 2"] == summary.overall
    assert summary.overall.prompts == 24
    assert 0 <= summary.overall.low <= summary.overall.mean <= summary.overall.high <= 1
    assert summary.overall.mean == pytest.approx(summary.overall.pass_at[1].mean)
    answered = [line for line in lines if line["outcome"] in ("correct", "wrong")]
    assert answered
    assert all(line["response"].replace(" ", "").endswith(f"={line['answer']}") for line in answered)
    assert all(line["answer"] is None for line in lines if line not in answered)
    votes = [
        majority_vote([line["answer"] for line in each], [line["reward"] for line in each])
        for each in by_prompt.values()
    ]
    assert summary.overall.majority is not None
    assert summary.overall.majority.mean == pytest.approx(sum(votes) / 24)
    again = rlad("eval", run.export, "--config", CONFIGS / "smoke_cpu.yaml", "--output", output, timeout_s=60)
    assert "already holds evaluation.json" in again.stderr


def test_a_finished_run_is_not_run_again(run: RunDirectory) -> None:
    before = run.metrics.read_text()
    again = rlad("run", CONFIGS / "smoke_cpu.yaml", *OVERRIDES, "--run-dir", run.path, "--resume", timeout_s=60)
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    assert run.metrics.read_text() == before


def test_an_existing_run_is_refused_without_resume(run: RunDirectory) -> None:
    result = rlad("run", CONFIGS / "smoke_cpu.yaml", "--run-dir", run.path, timeout_s=60)
    assert result.returncode == 1
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr
