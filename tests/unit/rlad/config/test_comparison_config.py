"""Loading and validation of comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.config import load_run_config
from rlad.config.comparison import load_comparison
from rlad.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"
GRPO: dict[str, Any] = {"overrides": {"objective": {"name": "grpo"}, "teacher": None}}


def write(folder: Path, **changes: Any) -> Path:
    settings = {
        "name": "toy",
        "base": str(CONFIGS / "smoke_cpu.yaml"),
        "methods": {"trrd": {}, "grpo": GRPO},
        **changes,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def test_each_method_runs_with_each_seed_on_top_of_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[3, 5], overrides={"training.steps": 2, "objective.alpha": 0.25})
    comparison = load_comparison(path)
    assert [run.name for run in comparison.runs] == ["trrd-seed3", "grpo-seed3", "trrd-seed5", "grpo-seed5"]
    trrd, grpo = comparison.runs[2].config, comparison.runs[3].config
    base = load_run_config(CONFIGS / "smoke_cpu.yaml")
    assert trrd == base.model_copy(
        update={
            "name": "trrd-seed5",
            "seed": 5,
            "training": base.training.model_copy(update={"steps": 2}),
            "objective": base.objective.model_copy(update={"alpha": 0.25}),
        }
    )
    # A mapping replaces the base's mapping as a whole, so the base's alpha is gone.
    assert (grpo.objective.name, grpo.teacher, grpo.training.steps) == ("grpo", None, 2)


def test_arguments_select_methods_seeds_and_overrides(tmp_path: Path) -> None:
    comparison = load_comparison(write(tmp_path), ["training.steps=1"], methods=["grpo", "trrd"], seeds=[7])
    assert [run.name for run in comparison.runs] == ["grpo-seed7", "trrd-seed7"]
    assert {run.config.training.steps for run in comparison.runs} == {1}


def test_override_of_another_kind_replaces_the_section_of_every_method(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    comparison = load_comparison(write(tmp_path), [f"prompts={{source: file, path: {tmp_path}/prompts.jsonl}}"])
    assert {run.config.prompts.model_dump()["source"] for run in comparison.runs} == {"file"}
    with pytest.raises(ConfigError, match="expected overrides of the form key=value"):
        load_comparison(write(tmp_path), ["training.steps"])


def test_base_can_be_a_file_or_inline_settings(tmp_path: Path) -> None:
    text = (CONFIGS / "smoke_cpu.yaml").read_text()
    (tmp_path / "base.yaml").write_text(text)
    beside, inside = (
        load_comparison(write(tmp_path, base="base.yaml")),
        load_comparison(write(tmp_path, base=yaml.safe_load(text))),
    )
    assert beside.runs == inside.runs
    assert beside.config == inside.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "did you mean `seeds`"),
        ({"seeds": [1, 1]}, "seeds must be unique"),
        ({"seeds": []}, "seeds"),
        ({"methods": {}}, "methods"),
        ({"methods": {"../trrd": {}}}, "methods"),
        ({"methods": {"trrd": {"override": {}}}}, "did you mean `overrides`"),
        ({"base": "nowhere.yaml"}, r"no configuration file at .*nowhere\.yaml"),
        ({"methods": {"trrd": {"overrides": {"objective.alhpa": 0.1}}}}, r"method trrd:\n.*did you mean `alpha`"),
        ({"methods": {"grpo": {"overrides": {"objective": {"name": "grpo"}}}}}, "method grpo:\n.*uses no teacher; got"),
        (
            {"methods": {"trrd": {}, "longer": {"overrides": {"evaluation.samples": 9}}}},
            "must have the same `evaluation`; methods trrd and longer differ",
        ),
        (
            {"methods": {"trrd": {}, "other": {"overrides": {"student.path": "/other"}}}},
            "must have the same `student`; methods trrd and other differ",
        ),
    ],
)
def test_invalid_setting_is_reported_with_its_location(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_comparison(write(tmp_path, **changes))


def test_unknown_or_duplicate_method_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method ppo; expected one of trrd, grpo"):
        load_comparison(write(tmp_path), methods=["trrd", "ppo"])
    with pytest.raises(ConfigError, match="methods must be unique"):
        load_comparison(write(tmp_path), methods=["trrd", "trrd"])


def test_shipped_ablation_has_grpo_and_five_alphas() -> None:
    comparison = load_comparison(CONFIGS / "ablation_alpha_cpu.yaml", seeds=[0])
    settings = [run.config.objective.model_dump() for run in comparison.runs]
    assert [each.get("alpha") for each in settings] == [None, 0.1, 0.3, 0.5, 0.7, 0.9]
    assert [each["name"] for each in settings] == ["grpo", *["trrd"] * 5]


def test_shipped_comparison_trains_all_methods_on_equal_batches() -> None:
    runs = load_comparison(CONFIGS / "compare_kk_cpu.yaml").runs
    assert [run.name for run in runs] == [
        f"{method}-seed{seed}" for seed in (0, 1, 2) for method in ("trrd", "grpo", "kdrl", "opd", "sft")
    ]
    for key in ("student", "prompts", "rollout", "learner", "evaluation"):
        assert len({str(getattr(run.config, key)) for run in runs}) == 1, key
    # A trace is a group of one response.
    responses = {
        run.config.training.prompts_per_step * (run.config.rollout.group_size if run.config.offline is None else 1)
        for run in runs
    }
    assert responses == {256}
    assert {(run.config.training.steps, run.config.training.updates_per_step) for run in runs} == {(12, 4)}
