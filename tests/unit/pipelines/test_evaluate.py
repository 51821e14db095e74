"""`rlad eval` refuses settings that cannot work before it starts an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from actors.messages import GroupSummary, SampledGroup, VerifierResult
from pipelines.evaluate import ResponseFile, evaluate_model
from pipelines.resolution.prompts import EncodedPrompts, require_group_key
from rlad.config import EvaluationConfig, load_evaluation_suite
from rlad.contracts import Outcome, Verdicts
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


def test_single_group_key_is_required_in_every_prompt_and_several_in_any() -> None:
    mixed = prompts({"people": 2}, {"level": "hard"})
    require_group_key(mixed, settings("task"))
    require_group_key(mixed, settings(["task", "people", "level"]))
    with pytest.raises(
        ConfigError, match=r"group_by is 'people', but prompt p1 has no such metadata \(it has: level\)"
    ):
        require_group_key(mixed, settings("people"))
    with pytest.raises(ConfigError, match="group_by is 'peple', but prompt p0 has no such metadata"):
        require_group_key(mixed, settings(["task", "peple"]))


def test_existing_evaluation_is_not_overwritten(tmp_path: Path) -> None:
    suite = load_evaluation_suite(SMOKE)
    (tmp_path / "responses-evaluation.jsonl").write_text("{}\n")
    with pytest.raises(RunDirectoryError, match=r"already holds responses-evaluation\.jsonl"):
        evaluate_model(suite, Console(), output=tmp_path)
    with pytest.raises(RunDirectoryError, match="is a file; expected a directory"):
        evaluate_model(suite, Console(), output=tmp_path / "responses-evaluation.jsonl")


def group(uid: str) -> tuple[SampledGroup, VerifierResult]:
    """Return a group of one correct response, whose text is the uid."""
    summary = GroupSummary(
        uid=uid, attempt=0, prompt_tokens=1, response_lengths=(2,), is_truncated=(False,), tokens_by_version={0: 2}
    )
    verdicts = Verdicts(
        uid=uid,
        attempt=0,
        rewards=np.ones(1, np.float32),
        outcomes=np.array([Outcome.CORRECT], np.uint8),
        elapsed_s=np.zeros(1, np.float32),
    )
    columns: Any = None
    sampled = SampledGroup(summary=summary, columns=columns, worker="w")
    return sampled, VerifierResult(verdicts=verdicts, elapsed_s=0.0, texts=(uid,), answers=("TF",))


def test_responses_are_written_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    records = prompts({}, {}, {}).records
    path = tmp_path / "responses.jsonl"
    with ResponseFile(path, records) as responses:
        for index in (2, 0, 1):
            responses.add(records[index], *group(f"p{index}"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["prompt_id"], line["response"]) for line in lines] == [("p0", "p0"), ("p1", "p1"), ("p2", "p2")]


def test_interrupted_evaluation_keeps_the_responses_that_arrived(tmp_path: Path) -> None:
    records = prompts({}, {}, {}).records
    path = tmp_path / "responses.jsonl"
    with pytest.raises(KeyboardInterrupt), ResponseFile(path, records) as responses:
        for index in (2, 1):
            responses.add(records[index], *group(f"p{index}"))
        raise KeyboardInterrupt
    assert [json.loads(line)["prompt_id"] for line in path.read_text().splitlines()] == ["p1", "p2"]
