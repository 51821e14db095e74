"""A run with the Gemma 3 architecture: alternating attention windows, norms of queries and keys, a padded tied output.

Its teachers are the initial student: sampler, both teacher engines, reference policy and learner agree on
log-probabilities. The two teachers, one per engine, score every group, and their mixture equals the student again. The
run therefore also covers several scoring pools.

The weights are random, so that the test is short. With `RLAD_GEMMA3` set to a model directory that
`python -m examples.real_models.fetch gemma3 DIR` has written, the same test runs with Gemma 3 270M.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.run.directory import RunDirectory, read_json_lines

from ..live_run import finish_run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CONFIGS = Path(__file__).parents[3] / "configs"
# Plain vLLM, without any code of rlad, prints the log-probability of each token of a prompt but the first.
PLAIN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
prompt = json.loads(sys.argv[2])
engine = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=1 << 28)
(request,) = engine.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1, prompt_logprobs=0))
print("scores", json.dumps([at[token].logprob for token, at in zip(prompt[1:], request.prompt_logprobs[1:])]))
"""
IN_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def gemma(gemma3_model: Path) -> Path:
    return Path(os.environ.get("RLAD_GEMMA3", gemma3_model))


@pytest.fixture(scope="module")
def run(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "gemma3")
    same = f"path: {gemma}, dtype: float32, cpus_per_replica: 0.25"
    settings = [
        f"student.path={gemma}",
        "teacher=null",
        f"teachers.plain={{{same}, engine: transformers}}",
        f"teachers.paged={{{same}, engine: vllm, token_budget: 2048}}",
        "teacher_routes.knights_knaves={plain: 1, paged: 3}",
        "reference={dtype: float32, engine: transformers, cpus_per_replica: 0.25}",
        "cluster.num_cpus=3",
        "prompts.count=8",
        "evaluation.prompts.count=4",
        "evaluation.every_steps=0",
        "training={steps: 1, prompts_per_step: 4, updates_per_step: 1}",
        # Responses of random weights earn no reward, and the teacher is the student, so the entropy moves the weights.
        "objective={name: trrd, reference_kl: 0.01, entropy_bonus: {coefficient: 0.1}}",
        "rollout.max_response_tokens=40",
    ]
    finish_run(CONFIGS / "smoke_cpu.yaml", *settings, directory=directory)
    return directory


def test_sampler_teachers_reference_and_learner_agree(run: RunDirectory) -> None:
    (step,) = read_json_lines(run.metrics)
    assert step["teacher/plain_tokens"] == step["teacher/paged_tokens"] == step["rollout/response_tokens"] > 0
    assert step["learner/missing_teacher_tokens"] == step["learner/missing_reference_tokens"] == 0
    assert step["rollout/response_tokens_mean"] > 16, "no response is longer than the window"
    assert step["learner/logprob_gap_max"] <= 1e-3
    assert 0 <= step["objective/log_ratio_teacher_abs_mean"] <= 1e-4
    assert abs(step["objective/reference_kl"]) <= 1e-6


def test_plain_vllm_and_plain_transformers_load_the_export_alike(run: RunDirectory, gemma: Path) -> None:
    prompt = [2, 18, 10, 19, 3, 18, 4, 20] * 10  # longer than the window
    finished = subprocess.run(
        [sys.executable, "-c", PLAIN_VLLM, str(run.export), json.dumps(prompt)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, **IN_ONE_PROCESS},
    )
    assert finished.returncode == 0, finished.stderr
    (scores,) = (line.removeprefix("scores") for line in finished.stdout.splitlines() if line.startswith("scores"))

    student, start = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (run.export, gemma))
    assert all(not torch.equal(new, old) for new, old in zip(student.parameters(), start.parameters(), strict=True))
    with torch.no_grad():
        logprobs = student(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert json.loads(scores) == pytest.approx(expected, abs=1e-3)
