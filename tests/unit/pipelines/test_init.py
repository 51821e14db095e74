"""`rlad init` writes configurations that `rlad plan` accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.cluster.resources import Resources, demand_by_pool
from pipelines.init.draft import Request, write_configuration
from pipelines.init.verifier_choice import verifiers_for
from pipelines.planning.plan import make_plan
from rlad.config import RunConfig, load_run_config
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, DataError, PlanError

from .planning.plan_inputs import errors, write_shape


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of Qwen3-0.6B, 8B and 32B, and of a smaller model, without weights, by size."""
    folder = tmp_path_factory.mktemp("models")
    shapes: dict[str, dict[str, Any]] = {
        "small": {"hidden": 256, "layers": 2, "feed_forward": 512, "heads": 8, "tied": True},
        "0.6B": {"hidden": 1024, "layers": 28, "feed_forward": 3072, "heads": 16, "tied": True},
        "8B": {"hidden": 4096, "layers": 36, "feed_forward": 12_288, "heads": 32, "tied": False},
        "32B": {"hidden": 5120, "layers": 64, "feed_forward": 25_600, "heads": 64, "tied": False},
    }
    return {size: str(write_shape(folder / size, **shape)) for size, shape in shapes.items()}


def math_rows(path: Path) -> Path:
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def countdown_rows(path: Path) -> Path:
    rows = [{"nums": [n, 2, 3], "target": n + 5} for n in range(1, 41)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verl_rows(path: Path) -> Path:
    import pandas

    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"Tom has {n} apples. How many are two of them?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(n)},
            "extra_info": {"split": "train", "index": n},
        }
        for n in range(40)
    ]
    pandas.DataFrame(rows).to_parquet(path)
    return path


def drafted(
    out: Path, student: str, teacher: str | None, prompts: Path, gpus: int, *, device: str = "h100", memory: float = 80
) -> RunConfig:
    """Write a configuration, and return it after `rlad plan` has accepted it."""
    request = Request(student=student, teacher=teacher, prompts=str(prompts), evaluation=None, gpus=gpus, device=device)
    config = load_run_config(write_configuration(request, out, force=False))
    plan = make_plan(config, Resources(cpus=max(8, 16 * gpus), gpus=gpus), gpu_memory_gib=memory)
    assert errors(plan) == []
    return config


@pytest.mark.parametrize(
    ("write", "name", "verifier", "model", "gpus"),
    [
        (math_rows, "math.jsonl", "math_answer", "small", 0),
        (math_rows, "math.jsonl", "math_answer", "0.6B", 1),
        (countdown_rows, "countdown.jsonl", "countdown", "0.6B", 2),
        (verl_rows, "gsm8k.parquet", "math_answer", "0.6B", 8),
    ],
)
def test_plan_accepts_the_configuration(
    models: dict[str, str], tmp_path: Path, write: Any, name: str, verifier: str, model: str, gpus: int
) -> None:
    config = drafted(tmp_path / "run.yaml", models[model], models[model], write(tmp_path / name), gpus)
    assert {each.name for each in config.verifiers.values()} == {verifier}
    assert sum(pool.gpus for pool in demand_by_pool(config).values()) == pytest.approx(gpus)
    training, evaluation = (
        {record.id for record in load_prompts(part)} for part in (config.prompts, config.evaluation.prompts)
    )
    assert (len(training), len(evaluation), training & evaluation) == (36, 4, set())


def test_large_models_get_engines_of_several_gpus_and_a_saving_learner(models: dict[str, str], tmp_path: Path) -> None:
    prompts = math_rows(tmp_path / "math.jsonl")
    config = drafted(tmp_path / "large.yaml", models["8B"], models["32B"], prompts, 16)
    teacher = config.frozen_models["teacher"]
    assert teacher.tensor_parallel == teacher.gpus_per_replica == 2  # 64 GB of weights and a cache
    assert config.learner.zero_stage >= 2
    assert sum(pool.gpus for pool in demand_by_pool(config).values()) == 16
    with pytest.raises(PlanError, match="3 NVIDIA H100 SXM are too few for these models: raise --gpus"):
        drafted(tmp_path / "few.yaml", models["8B"], models["32B"], prompts, 3)
    with pytest.raises(PlanError, match="cannot be shared by these models"):
        drafted(tmp_path / "one.yaml", models["8B"], models["32B"], prompts, 1)


def test_without_a_teacher_the_objective_needs_none(models: dict[str, str], tmp_path: Path) -> None:
    config = drafted(tmp_path / "run.yaml", models["0.6B"], None, math_rows(tmp_path / "math.jsonl"), 2)
    assert (config.objective.name, config.teacher, config.rollout.workers, config.learner.ranks) == ("grpo", None, 1, 1)


def test_models_that_are_not_here_are_divided_by_rule(tmp_path: Path) -> None:
    request = Request(
        student="Qwen/Away-1B",
        teacher="Qwen/Away-8B",
        prompts=str(math_rows(tmp_path / "math.jsonl")),
        evaluation=None,
        gpus=8,
        device="h100",
    )
    config = load_run_config(write_configuration(request, tmp_path / "run.yaml", force=False))
    assert (config.rollout.workers, config.scoring_pools["teacher"].replicas, config.learner.ranks) == (4, 2, 2)


def test_command_writes_a_commented_file_and_refuses_to_overwrite(models: dict[str, str], tmp_path: Path) -> None:
    out, prompts = tmp_path / "new" / "run.yaml", math_rows(tmp_path / "math.jsonl")
    words = ["init", "--student", models["0.6B"], "--teacher", models["8B"], "--prompts", str(prompts)]
    words += ["--gpus", "4", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"rlad plan {out} --gpus 4 --device h100" in done.output
    text = out.read_text()
    assert text.count("#") >= 8
    assert yaml.safe_load(text)["student"]["path"] == models["0.6B"]
    out.write_text("mine")
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, ConfigError)
    assert "overwrite it with --force" in str(again.exception)
    assert out.read_text() == "mine"
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    assert out.read_text() == text


def test_unreadable_prompts_leave_no_file(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="the layout is not known"):
        drafted(tmp_path / "run.yaml", models["0.6B"], None, tmp_path / "bad.jsonl", 1)
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize(
    ("task", "answers", "verifier"),
    [
        ("math", ["5", "1/2"], "math_answer"),
        ("mmlu", ["A", "(B)", "C."], "multiple_choice"),
        ("math", ["A", "7"], "math_answer"),
        ("kk", ["TF", "FFT"], "knights_knaves"),
        ("logic", ["(1) Zoey is a knight (2) Noah is a knave"], "knights_knaves"),
        ("countdown", ['{"numbers": [1, 2], "target": 3}'], "countdown"),
        ("code", ['{"inputs": ["1"], "outputs": ["1"]}'], "code_tests"),
    ],
)
def test_verifiers_are_chosen_by_the_answers(task: str, answers: list[str], verifier: str) -> None:
    records = [PromptRecord(id=answer, prompt="p", task=task, answer=answer) for answer in answers]
    assert verifiers_for(records) == {task: {"name": verifier}}


def test_field_layouts_get_a_configuration(models: dict[str, str], tmp_path: Path, shared_data: Path) -> None:
    files = {
        "field/layouts/verl_gsm8k.parquet": "math_answer",
        "field/layouts/aime_int.jsonl": "math_answer",
        "knights_knaves/3ppl_test.parquet": "knights_knaves",
    }
    for number, (file, verifier) in enumerate(files.items()):
        config = drafted(tmp_path / f"{number}.yaml", models["0.6B"], models["0.6B"], shared_data / file, 8)
        assert {each.name for each in config.verifiers.values()} == {verifier}
