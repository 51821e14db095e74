"""A resolved run: disjoint prompts, and the same ones when it is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.resolution.resolved_run import resolve_run
from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig
from rlad.config.load import validated
from rlad.errors import ConfigError, PlanError

ROOT = Path(__file__).parents[4]


def write(path: Path, *questions: str) -> None:
    rows = ({"id": f"{path.stem}-{question}", "question": question, "answer": "1"} for question in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def config(tmp_path: Path, student: Path) -> RunConfig:
    """A run without teachers, whose model has only a configuration and a tokenizer."""
    model = tmp_path / "model"
    shutil.copytree(student, model)
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 256, "hidden_size": 8}))
    write(tmp_path / "train.jsonl", "1?", "22?", "333?")
    write(tmp_path / "test.jsonl", "22?", "4?")
    settings = yaml.safe_load((ROOT / "configs/qwen3_8b_math_30k.yaml").read_text())
    train, test = ({"source": "file", "path": f"{tmp_path}/{name}.jsonl", "task": "math"} for name in ("train", "test"))
    settings |= {"student": {"path": str(model)}, "teacher": None, "objective": {"name": "grpo"}, "prompts": train}
    settings["evaluation"] |= {"prompts": test, "overlap": "drop_training"}
    return validated(RunConfig, settings, where="the run of the test")


def test_evaluation_prompts_are_left_out_of_the_training(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    run = resolve_run(config, directory)
    assert [record.id for record in run.prompts.records] == ["train-1?", "train-333?"]
    assert [record.id for record in run.evaluation_prompts.records] == ["test-22?", "test-4?"]
    refusing = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"overlap": "refuse"})})
    with pytest.raises(PlanError, match="1 of 2 evaluation prompts are also training prompts, for example test-22"):
        resolve_run(refusing, directory)


def test_continued_run_is_refused_on_changed_prompts(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.record_prompts(resolve_run(config, directory).prompts_record)
    again = resolve_run(config, directory)
    assert directory.recorded_prompts() == again.prompts_record
    write(tmp_path / "train.jsonl", "22?", "1?", "333?")  # what is left out may move
    assert resolve_run(config, directory).dataset_fingerprint == again.dataset_fingerprint
    write(tmp_path / "train.jsonl", "1?", "333?", "4444?")
    with pytest.raises(ConfigError, match="the training prompts differ from those that .*changed: local files"):
        resolve_run(config, directory)
    write(tmp_path / "train.jsonl", "1?", "22?", "333?")
    write(tmp_path / "test.jsonl", "22?", "5?")
    with pytest.raises(ConfigError, match="the evaluation prompts differ"):
        resolve_run(config, directory)
