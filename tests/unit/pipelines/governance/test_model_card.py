"""The model card of a version tells method, data, accuracy and lineage from the registry's records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipelines.governance.model_card import model_card
from rlad.config import load_run_config
from rlad.evaluation.accuracy import PromptResult, summarise
from rlad.monitoring.cost import RunCost
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry

from ..cli.test_registry_governance import LINEAGE, MODEL

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
TEACHER = "/home/anna/models/teacher-7b"


def results(solved: int) -> list[PromptResult]:
    return [
        PromptResult(
            prompt_id=f"p{index}",
            groups=("2" if index < 4 else "3",),
            rewards=(float(index < solved),),
            response_tokens=(8,),
            num_truncated=int(index == 9),
        )
        for index in range(10)
    ]


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A registry with version 1, and version 2 that started from it, with a configuration, notes and a cost."""
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    add(opened, export, key="a", solved=5, base_model="/home/anna/models/base-1b")
    config = load_run_config(SMOKE, [f"teacher.path={TEACHER}"]).model_dump(mode="json")
    second: dict[str, Any] = {
        "parent": f"{MODEL}@1",
        "run_id": "second-run",
        "teachers": {"teacher": f"{TEACHER} (sha256:abcd)"},
        "num_prompts": 64,
        "cost": RunCost(gpu_hours=2.5, cpu_hours=8.0),
    }
    add(opened, export, key="b", solved=8, config=config, **second)
    ModelGovernance(registry=opened, name=MODEL).annotate(
        2, tags={"quality": "gold"}, description="Reads puzzles in `/home/team`."
    )
    return opened


def add(registry: ModelRegistry, export: Path, *, key: str, solved: int, config: Any = None, **lineage: Any) -> None:
    registry.add(
        MODEL,
        export,
        lineage=replace(LINEAGE, **lineage),
        evaluation=summarise(results(solved)),
        idempotency_key=key,
        config=config,
    )


def test_card_tells_method_data_accuracy_and_lineage(registry: ModelRegistry) -> None:
    card = ModelCard(model_card(registry, registry.get(MODEL, 2)))
    text = card.text
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["rlad", "distillation", "trrd"]
    assert "Reads puzzles in `/home/team`.\n\nTags: `quality=gold`." in text
    assert f"`{MODEL}@1`, trained by rlad 0 with objective `trrd`" in text
    assert "and teacher `teacher-7b`" in text
    assert "- Training: 64 prompts (fingerprint `p`): `knights_knaves` (form compact, people {" in text
    assert "- Evaluation: 10 prompts: `knights_knaves`" in text
    assert "`knights_knaves` by `knights_knaves`" in text
    # 4 of 4 and 4 of 6 prompts are solved; one of the latter was cut off. Wilson: 4 / (4 + 1.96 ** 2) = 51.0%.
    assert "| 2 | 4 | 100.0% | 51.0% to 100.0% | 100.0% | 8 | 0.0% |" in text
    assert "| 3 | 6 | 66.7% |" in text
    assert "| 66.7% | 8 | 16.7% |" in text
    assert "| all | 10 | 80.0% |" in text
    rows = [line for line in text.splitlines() if line.startswith(f"| {MODEL}@")]
    date = registry.get(MODEL, 1).created_at[:10]
    assert rows == [
        f"| {MODEL}@2 | {MODEL}@1 | second-run | 1 | 80.0% of 10 | {date} |",
        f"| {MODEL}@1 | base-1b | r | 1 | 50.0% of 10 | {date} |",
    ]
    assert "- Teacher `teacher`: `teacher-7b (sha256:abcd)`" in text
    assert "- Cost of the run: 2.50 GPU-hours, 8.00 CPU-hours" in text
    weights = next(file for file in registry.get(MODEL, 2).files if file.path == "model.safetensors")
    assert f"| `model.safetensors` | 7 | `{weights.sha256}` |" in text
    assert "/home/anna" not in text


def test_version_without_a_readable_configuration_has_a_card(registry: ModelRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path / "export", key="c", solved=1, config={"setting": "of another version"}, base_model="m")
    for number, start in ((1, "base-1b"), (3, "m")):
        text = model_card(registry, registry.get(MODEL, number))
        assert f"`{start}`, trained by rlad 0 for 1 steps." in text
        assert "| group | prompts |" in text


def test_lineage_continues_over_retired_versions(registry: ModelRegistry) -> None:
    registry.retain(MODEL, 1)
    assert f"| {MODEL}@1 | base-1b |" in model_card(registry, registry.get(MODEL, 2))
