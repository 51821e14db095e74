"""An evaluation whose table cannot be made is refused before an engine starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipelines.evaluate import evaluate_model
from pipelines.resolution.prompts import EncodedPrompts, require_group_key
from rlad.config import EvaluationConfig, load_evaluation_suite
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, RunDirectoryError

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"


def prompts(*metadata: dict[str, Any]) -> EncodedPrompts:
    records = [
        PromptRecord(id=f"p{index}", prompt="?", task="kk", answer="TF", metadata=each)
        for index, each in enumerate(metadata)
    ]
    return EncodedPrompts(records=records, token_ids=[np.array([1], np.int32)] * len(records))


def settings(group_by: str | list[str]) -> EvaluationConfig:
    return EvaluationConfig.model_validate(
        {"prompts": {"source": "file", "path": "prompts.jsonl"}, "group_by": group_by}
    )


def test_one_key_must_be_in_every_prompt_and_one_of_several_in_some() -> None:
    mixed = prompts({"people": 2}, {"level": "hard"})
    require_group_key(mixed, settings("task"))
    require_group_key(mixed, settings(["task", "people", "level"]))
    with pytest.raises(
        ConfigError, match=r"group_by is 'people', but prompt p1 has no such metadata \(it has: level\)"
    ):
        require_group_key(mixed, settings("people"))
    with pytest.raises(ConfigError, match="group_by is 'peple', but prompt p0 has no such metadata"):
        require_group_key(mixed, settings(["task", "peple"]))


def test_an_evaluation_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    suite = load_evaluation_suite(SMOKE)
    (tmp_path / "responses-evaluation.jsonl").write_text("{}\n")
    with pytest.raises(RunDirectoryError, match=r"already holds responses-evaluation\.jsonl"):
        evaluate_model(suite, Console(), output=tmp_path)
    with pytest.raises(RunDirectoryError, match="is a file: --output names a directory"):
        evaluate_model(suite, Console(), output=tmp_path / "responses-evaluation.jsonl")
