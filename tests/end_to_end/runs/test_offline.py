"""Offline distillation from the command line: killed, continued; a comparison then trains on its traces."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pipelines.compare import ComparisonDirectory
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.contracts import Outcome
from rlad.data.order import PromptOrder
from rlad.data.trace_files import TraceManifest
from rlad.data.training_traces import TrainingTraces
from rlad.models.locations import resolve_model
from rlad.verifiers import build_verifier

from ..learner.learner_reference import response_logprobs
from ..live_run import LiveRun

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
PROMPTS, STEPS, SIZE, SAMPLES = 64, 8, 8, 4
COMPARED_STEPS = 2
METHODS = ["trrd", "sft"]
SETTINGS = [
    "objective.name=sft",
    f"offline.traces_per_prompt={SAMPLES}",
    "offline.max_accepted_per_prompt=1",
    "offline.prompts_per_part=4",
    "offline.rollout.max_sequences=8",
    f"prompts.count={PROMPTS}",
    f"training={{steps: {STEPS}, prompts_per_step: {SIZE}, updates_per_step: 1}}",
    "evaluation.every_steps=0",
]


def rlad(*arguments: str | Path, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def kill_when(condition: Callable[[], bool], run: RunDirectory, *arguments: str | Path) -> None:
    """Start `rlad`, and kill it with all its local processes as soon as the condition holds."""
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        LiveRun(process, run).wait_for(condition, "the condition for the kill")
        os.killpg(process.pid, signal.SIGKILL)


def parts_of(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.traces.glob("part-*.parquet"))}


@dataclass(frozen=True)
class Finished:
    """A run after a kill.

    Attributes:
        parts_at_kill: of the traces, at the kill.
    """

    run: RunDirectory
    parts_at_kill: dict[str, bytes]
    output: str

    @property
    def manifest(self) -> TraceManifest:
        manifest = TraceManifest.read(self.run.traces)
        assert manifest is not None
        return manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run killed during generation, then continued to its end."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "offline")
    start = ["run", SMOKE, *SETTINGS, "--run-dir", run.path]
    kill_when(lambda: len(list(run.traces.glob("part-*.parquet"))) >= 2, run, *start)
    parts = parts_of(run)
    assert TraceManifest.read(run.traces) is None, "it was killed too late to show anything"
    continued = rlad(*start, "--resume")
    assert continued.returncode == 0, continued.stderr
    return Finished(run=run, parts_at_kill=parts, output=continued.stdout)


@pytest.fixture(scope="module")
def prompts(finished: Finished) -> EncodedPrompts:
    config = finished.run.read_config()
    return prepare_prompts(config.prompts, config, str(resolve_model(config.student.path)))


def test_traces_from_before_the_kill_are_not_generated_again(finished: Finished) -> None:
    now = parts_of(finished.run)
    assert 2 <= len(finished.parts_at_kill) < len(now)
    assert {name: now[name] for name in finished.parts_at_kill} == finished.parts_at_kill
    counts = finished.manifest.counts
    assert (counts.prompts, counts.generated) == (PROMPTS, PROMPTS * SAMPLES)
    assert counts.accepted + counts.unsolved_prompts == PROMPTS
    assert counts.accepted + counts.surplus + sum(counts.rejected.values()) == counts.generated


def test_every_accepted_trace_is_trained_on_exactly_once_an_epoch(finished: Finished) -> None:
    result = rlad("ledger", finished.run.path, "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert (counts["committed"], counts["trained_steps"]) == (STEPS * SIZE, STEPS)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    traces = TrainingTraces(finished.run.training_traces)
    assert len(traces) == finished.manifest.counts.accepted <= STEPS * SIZE
    with sqlite3.connect(finished.run.ledger) as ledger:
        trained = Counter(uid for (uid,) in ledger.execute("SELECT uid FROM trained"))
    first_epoch = [f"{traces.fingerprint}:0:{position}" for position in range(len(traces))]
    assert [trained[uid] for uid in first_epoch] == [1] * len(traces)


def test_every_trace_is_correct_and_has_the_teacher_s_log_probabilities(
    finished: Finished, prompts: EncodedPrompts
) -> None:
    """Checked by the verifier and by an unpacked float64 forward pass of the teacher."""
    config = finished.run.read_config()
    assert config.teacher is not None
    teacher_path = resolve_model(config.teacher.path)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float64, attn_implementation="eager")
    tokenizer = Tokenizer.from_file(str(teacher_path / "tokenizer.json"))
    verifier = build_verifier(config.verifiers["knights_knaves"])
    provenance = finished.manifest.provenance
    rows = [
        row for path in finished.manifest.part_paths(finished.run.traces) for row in pq.read_table(path).to_pylist()
    ]
    assert len({row["prompt_position"] for row in rows}) == len(rows) == finished.manifest.counts.accepted
    for row in rows:
        record = prompts.records[row["prompt_position"]]
        assert (row["prompt_id"], row["task"]) == (record.id, record.task)
        assert row["response_text"] == tokenizer.decode(row["response_ids"], skip_special_tokens=True)
        assert verifier.verify(row["response_text"], record.answer).outcome is Outcome.CORRECT
        assert (row["teacher_fingerprint"], row["dataset_fingerprint"]) == (provenance.teacher, provenance.dataset)
        with torch.no_grad():
            expected = response_logprobs(
                teacher, prompts.token_ids[row["prompt_position"]], np.array(row["response_ids"]), 1.0
            )
        np.testing.assert_allclose(row["behaviour_logprobs"], expected.numpy(), atol=1e-4)


def test_the_first_step_is_that_of_plain_cross_entropy(finished: Finished, prompts: EncodedPrompts) -> None:
    """Loss and gradient norm against a float64 mean over traces of token means, without packing, ranks or ZeRO."""
    config, traces = finished.run.read_config(), TrainingTraces(finished.run.training_traces)
    student = AutoModelForCausalLM.from_pretrained(
        resolve_model(config.student.path), dtype=torch.float64, attn_implementation="eager"
    )
    losses = []
    order = PromptOrder(len(traces), seed=config.seed)
    for turn in map(order.turn, range(SIZE)):
        trace = traces[turn.record]
        losses.append(
            -response_logprobs(student, prompts.token_ids[trace.prompt_position], trace.response_ids, 1.0).mean()
        )
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    )
    first = read_json_lines(finished.run.metrics)[0]
    assert first["step"] == 1
    assert first["learner/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["learner/gradient_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_training_lowers_the_loss_on_all_traces(finished: Finished, prompts: EncodedPrompts) -> None:
    """Measured over all traces with plain transformers: single steps are not comparable, since their traces differ."""
    traces = TrainingTraces(finished.run.training_traces)

    def loss_of(path: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
        with torch.no_grad():
            logprobs = [
                response_logprobs(model, prompts.token_ids[trace.prompt_position], trace.response_ids, 1.0)
                .mean()
                .item()
                for trace in map(traces.__getitem__, range(len(traces)))
            ]
        return -float(np.mean(logprobs))

    assert loss_of(finished.run.export) < 0.9 * loss_of(resolve_model(finished.run.read_config().student.path))


def test_metrics_and_evaluations_have_no_gaps_or_repetitions(finished: Finished) -> None:
    assert [line["step"] for line in read_json_lines(finished.run.metrics)] == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_json_lines(finished.run.evaluations)] == [0, STEPS]


def test_card_and_report_name_the_traces(finished: Finished) -> None:
    assert "before" in finished.output
    assert "on traces of the teacher `starter:kk-smoke/teacher`" in (finished.run.export / "README.md").read_text()
    assert "Trace length (tokens)" in finished.run.report.read_text()


def test_traces_of_other_prompts_are_refused_before_anything_starts(finished: Finished, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"offline.traces={finished.run.traces}", "prompts.seed=5", "--run-dir", tmp_path / "other"]
    result = rlad("run", SMOKE, *arguments, timeout_s=300)
    assert result.returncode == 1
    assert "do not match this run: expected dataset" in result.stderr
    assert "Traceback" not in result.stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison of reinforcement learning, continued with a method that trains on the traces of `finished`.

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
def compared(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("comparison")
    config = folder / "compare.yaml"
    reuse = f"{{traces: {finished.run.traces}, traces_per_prompt: {SAMPLES}, max_accepted_per_prompt: 1}}"
    config.write_text(
        f"name: smoke\nbase: {SMOKE}\n"
        f"overrides: {{training.steps: {COMPARED_STEPS}, evaluation.every_steps: 1}}\n"
        "methods:\n"
        "  trrd: {}\n"
        f"  sft: {{overrides: {{objective: {{name: sft}}, teacher: null, offline: {reuse}}}}}\n"
    )
    directory = ComparisonDirectory(folder / "runs")
    first = rlad("compare", config, "--methods", "trrd", "--run-dir", directory.path)
    assert first.returncode == 0, first.stderr
    before = RunDirectory(directory.path / "trrd-seed0").metrics.read_bytes()
    continued = rlad("compare", config, "--run-dir", directory.path, "--resume")
    assert continued.returncode == 0, continued.stderr
    return Compared(config=config, directory=directory, metrics_before=before, output=continued.stdout)


def test_traces_are_reused_without_the_teacher(finished: Finished, compared: Compared) -> None:
    run = RunDirectory(compared.directory.path / "sft-seed0")
    assert not run.traces.exists()
    assert TrainingTraces(run.training_traces).fingerprint == TrainingTraces(finished.run.training_traces).fingerprint


def test_every_compared_run_is_trained_and_the_start_is_evaluated_once(compared: Compared) -> None:
    directory = compared.directory
    trrd, sft = runs = [RunDirectory(directory.path / f"{method}-seed0") for method in METHODS]
    for run in runs:
        assert [line["step"] for line in read_json_lines(run.metrics)] == list(range(1, COMPARED_STEPS + 1))
        assert [line["step"] for line in read_json_lines(run.evaluations)] == list(range(COMPARED_STEPS + 1))
        assert run.export.is_dir()
        ledger = rlad("ledger", run.path)
        assert ledger.returncode == 0, ledger.stdout
    assert read_json_lines(sft.evaluations)[0] == {**read_json_lines(trrd.evaluations)[0], "taken_from": "trrd-seed0"}
    assert [run.read_config().objective.name for run in runs] == METHODS


def test_compared_results_agree_with_the_recorded_runs(compared: Compared) -> None:
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


def test_resumed_comparison_trains_only_missing_runs(compared: Compared) -> None:
    assert "2 runs, 1 already finished" in compared.output
    assert RunDirectory(compared.directory.path / "trrd-seed0").metrics.read_bytes() == compared.metrics_before


def test_used_directory_of_a_comparison_is_refused_without_resume(compared: Compared) -> None:
    result = rlad("compare", compared.config, "--run-dir", compared.directory.path, timeout_s=300)
    assert result.returncode == 1
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr
