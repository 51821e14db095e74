"""A run that fails a check leaves nothing behind, so that the corrected command works as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipelines.compare import ComparisonDirectory, compare
from pipelines.distill import distill
from pipelines.evaluate import evaluate_model
from pipelines.run.directory import RunDirectory
from rlad.config import load_evaluation_suite, load_run_config
from rlad.config.comparison import load_comparison
from rlad.errors import ConfigError, DataError, PlanError, RladError, VocabularyMismatchError


@pytest.fixture
def config_file(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a configuration with which only the missing cluster fails."""
    for name in ("train", "evaluation"):
        rows = [
            {"id": f"{name}{n}", "prompt": "AB"[name == "train"] + ":b;" + "a" * n, "task": "m", "answer": "1"}
            for n in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "name": "preflight",
        "student": {"path": str(make_model()), "dtype": "float32"},
        "teacher": {"path": str(make_model(seed=1)), "dtype": "float32"},
        "objective": {"name": "trrd"},
        "prompts": {"source": "file", "path": str(tmp_path / "train.jsonl")},
        "verifiers": {"m": {"name": "math_answer"}},
        "rollout": {"max_response_tokens": 64},
        "training": {"steps": 1, "prompts_per_step": 2},
        "evaluation": {"prompts": {"source": "file", "path": str(tmp_path / "evaluation.jsonl")}},
        "cluster": {"address": "nowhere"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("cluster.start_timeout_s=300", PlanError, "no Ray cluster answers at nowhere"),
        ("student.path=/nowhere", PlanError, "no model at '/nowhere'"),
        ("teacher.path=/nowhere", PlanError, "no model at '/nowhere'"),
        ("prompts.path=/nowhere.jsonl", DataError, "/nowhere.jsonl"),
        ("prompts.columns={prompt: absent}", DataError, "absent"),
        ("prompts.columns={task: id}", PlanError, "no verifier for task train0"),
        ("evaluation.prompts.path={train}", PlanError, "evaluation prompts are also training prompts"),
        ("evaluation.group_by=level", ConfigError, "group_by is 'level'"),
        ("rollout.max_prompt_tokens=1", DataError, "have more than 1 tokens"),
        ("student.chat_template_kwargs={enable_thinking: false}", ConfigError, "no chat template"),
        ("teacher.path={other}", VocabularyMismatchError, "differ at the teacher"),
        ("prompts.path={routed}", PlanError, "names the unknown teacher gone"),
        ("teacher.url=http://127.0.0.1:1/t", PlanError, "no Ray cluster answers"),
    ],
)
def test_a_run_that_fails_a_check_leaves_nothing(
    config_file: Path,
    tmp_path: Path,
    make_model: Callable[..., Path],
    change: str,
    error: type[RladError],
    message: str,
) -> None:
    other, routed = tmp_path / "other", tmp_path / "routed.jsonl"
    other.mkdir()
    for file in make_model(seed=1).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace('"A":', '"Z":'))
    row = {"id": "r", "prompt": "A:b;?", "task": "m", "answer": "1", "metadata": {"teacher_id": "gone"}}
    routed.write_text(json.dumps(row) + "\n")
    filled = change.replace("{train}", str(tmp_path / "train.jsonl")).replace("{other}", str(other))
    config = load_run_config(config_file, [filled.replace("{routed}", str(routed))])
    run = RunDirectory(tmp_path / "made" / "runs" / "first")
    with pytest.raises(error, match=message):
        distill(config, run, resume=False, console=Console(quiet=True))
    assert not (tmp_path / "made").exists()


def test_a_check_that_fails_leaves_the_folders_of_others(config_file: Path, tmp_path: Path) -> None:
    config = load_run_config(config_file)
    runs = tmp_path / "runs"
    (runs / "empty").mkdir(parents=True)
    for name in ("empty", "new"):
        with pytest.raises(PlanError, match="no Ray cluster answers"):
            distill(config, RunDirectory(runs / name), resume=True, console=Console(quiet=True))
    assert [path.name for path in runs.rglob("*")] == ["empty"]


def test_a_run_that_another_process_continues_is_refused_before_the_checks(config_file: Path, tmp_path: Path) -> None:
    config = load_run_config(config_file)
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        other = load_run_config(config_file, ["seed=9"])
    with pytest.raises(ConfigError, match="was started with other settings of seed"):
        distill(other, run, resume=True, console=Console(quiet=True))


def test_a_comparison_that_fails_a_check_leaves_nothing(config_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    settings = {"name": "c", "base": config_file.name, "methods": {"a": {}, "b": {"overrides": {"training.steps": 2}}}}
    file.write_text(yaml.safe_dump({**settings, "seeds": [0]}))
    directory = ComparisonDirectory(tmp_path / "made" / "comparison")
    with pytest.raises(PlanError, match="no Ray cluster answers"):
        compare(load_comparison(file), directory, resume=False, console=Console(quiet=True))
    assert not (tmp_path / "made").exists()


def test_an_evaluation_that_fails_a_check_leaves_nothing(config_file: Path, tmp_path: Path) -> None:
    for change in ([], ["student.path=/nowhere"]):
        suite = load_evaluation_suite(config_file, change)
        with pytest.raises(PlanError):
            evaluate_model(suite, Console(quiet=True), output=tmp_path / "made" / "evaluation")
        assert not (tmp_path / "made").exists()
