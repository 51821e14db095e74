"""Tests of the examples: each runs as its README says, and does what its text claims."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml

from examples.letter_count_prompts import make_records
from examples.letter_count_verifier import score
from examples.prompt_copy_teacher import application, copy_logprobs
from examples.reinforce_objective import ReinforceConfig, ReinforceObjective
from rlad.config import load_run_config
from rlad.contracts import Outcome
from rlad.data.prompt_files import read_prompt_file
from rlad.errors import AccessError, ContractError, VocabularyMismatchError
from rlad.teacher.http_client import TeacherHttpClient
from rlad.testing import make_group
from rlad.verifiers import build_verifier

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "README.md").read_text()
TOKEN = "test-token-0123456789"


def run_example(module: str, *arguments: str) -> list[str]:
    """Run an example as a command and return the lines it prints."""
    command = [sys.executable, "-W", "error", "-m", f"examples.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_readme_lists_every_example_and_only_those() -> None:
    files = {path.name for path in (ROOT / "examples").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)`", README, re.MULTILINE)) == files
    modules = set(re.findall(r"`\.venv/bin/python -m examples\.(\w+)[^`]*`", README))
    assert {f"{module}.py" for module in modules} == files


def test_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs" / "smoke_cpu.yaml").read_text())
    for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL):
        config |= yaml.safe_load(block)
    config["evaluation"] |= {"prompts": config["prompts"], "group_by": "length"}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    run = load_run_config(path)
    assert build_verifier(run.verifiers["letter_count"]).verify("Answer: 3", "3").reward == 1


def test_verifier_runs() -> None:
    assert [line.split()[:2] for line in run_example("letter_count_verifier")] == [
        ["CORRECT", "reward=1.0"],
        ["WRONG", "reward=0.5"],
        ["UNPARSEABLE", "reward=0.0"],
    ]


@pytest.mark.parametrize(
    ("response", "reward", "outcome"),
    [
        ("Answer: 3", 1.0, Outcome.CORRECT),
        ("answer:3", 1.0, Outcome.CORRECT),
        ("Answer: 3. No, wait. Answer: 4", 0.5, Outcome.WRONG),
        ("Answer: 5", 0.0, Outcome.WRONG),
        ("3", 0.0, Outcome.UNPARSEABLE),
    ],
)
def test_verifier_judges_the_last_answer(response: str, reward: float, outcome: Outcome) -> None:
    verdict = score(response, "3")
    assert (verdict.reward, verdict.outcome) == (reward, outcome)


def test_prompt_file_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    (line,) = run_example("letter_count_prompts", str(path), "--count", "12", "--seed", "3")
    assert "12 prompts" in line
    records = read_prompt_file(path)
    assert records == make_records(12, 3)
    assert json.loads(path.read_text().splitlines()[0])["task"] == "letter_count"


def test_answers_of_the_prompts_are_right() -> None:
    for record in make_records(1000, 0):
        word, letter = record.id.split("-")
        assert score(f"Answer: {sum(character == letter for character in word)}", record.answer).reward == 1


def test_objective_trains_the_policy_towards_the_reward() -> None:
    lines = run_example("reinforce_objective")
    probabilities = [float(line.split("probability=")[1]) for line in lines]
    assert probabilities[0] < 0.4
    assert probabilities[-1] > 0.9


def columns(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_objective_loss_equals_its_formula() -> None:
    policy = columns(-1.0, -0.5).requires_grad_()
    output = ReinforceObjective(ReinforceConfig(cap=1.5))(
        policy_logprobs=policy,
        behaviour_logprobs=columns(-1.2, -2.0),
        advantages=torch.tensor([2.0], dtype=torch.float64),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    weights = [math.exp(0.2), 1.5]  # exp(1.5) is above the cap
    assert output.loss.item() == pytest.approx((-weights[0] * 2 * -1.0 + -weights[1] * 2 * -0.5) / 2)
    (gradient,) = torch.autograd.grad(output.loss, policy)
    assert gradient[0].tolist() == pytest.approx([-weights[0], -weights[1]])  # the weight is constant: -w A / 2


def test_objective_reinforces_tokens_that_the_teacher_prefers() -> None:
    policy = columns(-1.0, -1.0).requires_grad_()
    output = ReinforceObjective(ReinforceConfig(agreement=0.5))(
        policy_logprobs=policy,
        behaviour_logprobs=columns(-1.0, -1.0),
        teacher_logprobs=columns(-0.2, -3.0),
        advantages=torch.zeros(1, dtype=torch.float64),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(output.loss, policy)
    assert gradient[0].tolist() == pytest.approx([-0.5 * 0.8 / 2, 0.5 * 2.0 / 2])


def test_teacher_runs() -> None:
    teacher, logprobs = run_example("prompt_copy_teacher")
    assert teacher == "teacher=prompt-copy-v1"
    expected = [round(math.log(probability), 3) for probability in (0.45, 0.45, 0.1 / 98)]
    assert json.loads(logprobs.removeprefix("logprobs=")) == expected


def test_teacher_distribution_sums_to_one() -> None:
    group = make_group([list(range(20))], prompt=[3, 5, 3])
    assert np.exp(copy_logprobs(group, vocabulary=20)).sum() == pytest.approx(1)


def teacher_client(*, token: str = TOKEN, tokenizer: str = "student") -> TeacherHttpClient:
    app = application(token=TOKEN, tokenizer="student", vocabulary=20)
    return TeacherHttpClient(
        "http://teacher",
        token=token,
        client="test",
        tokenizer=tokenizer,
        max_retries=0,
        transport=httpx.ASGITransport(app),
    )


async def test_teacher_refuses_what_it_cannot_score() -> None:
    group = make_group([[4]])
    async with teacher_client(token="another-token-0123456") as client:
        with pytest.raises(AccessError, match="token is missing or wrong"):
            await client.score(group)
    async with teacher_client(tokenizer="another") as client:
        with pytest.raises(VocabularyMismatchError, match="expected tokenizer student; the student has another"):
            await client.score(group)
    async with teacher_client() as client:
        with pytest.raises(ContractError, match="sampled tokens only; got support 5"):
            await client.score(group, support=5)
