"""Conditions and trials of a comparison: which runs there are, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.config.comparison import Comparison, load_comparison
from rlad.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"
VALIDATION = {"source": "knights_knaves", "form": "compact", "people": {2: 1}, "count": 5, "split": "train", "seed": 9}
SETTINGS: dict[str, Any] = {
    "name": "toy",
    "base": str(CONFIGS / "smoke_cpu.yaml"),
    "conditions": {
        "right": {"overrides": {"teacher.path": "/right"}},
        "wrong": {"overrides": {"teacher.path": "/wrong"}},
    },
    "tune": {"trials": 2, "prompts": VALIDATION},
    "methods": {
        "grpo": {
            "overrides": {"objective": {"name": "grpo"}, "teacher": None},
            "search": {"learner.optimizer.lr": [1e-4, 2e-4]},
        },
        "kdrl": {
            "overrides": {"objective": {"name": "kdrl"}},
            "search": {"objective.beta": [0.1, 0.3], "learner.optimizer.lr": [1e-4, 2e-4]},
        },
    },
    "seeds": [0, 1],
}


def loaded(tmp_path: Path, overrides: tuple[str, ...] = (), **changes: Any) -> Comparison:
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}))
    return load_comparison(path, overrides)


def test_methods_with_a_teacher_run_under_each_condition_and_others_once(tmp_path: Path) -> None:
    comparison = loaded(tmp_path)
    labels = ["grpo-seed0", "right/kdrl-seed0", "wrong/kdrl-seed0"]
    assert [run.label for run in comparison.runs] == labels + [each.replace("seed0", "seed1") for each in labels]
    assert [run.label for run in comparison.under("wrong")] == [
        "grpo-seed0",
        "wrong/kdrl-seed0",
        "grpo-seed1",
        "wrong/kdrl-seed1",
    ]
    paths = {run.label: run.config.teacher and run.config.teacher.label for run in comparison.runs[:3]}
    assert paths == {"grpo-seed0": None, "right/kdrl-seed0": "/right", "wrong/kdrl-seed0": "/wrong"}


def test_trials_draw_distinct_values_and_leave_the_evaluation_to_validation_prompts(tmp_path: Path) -> None:
    comparison = loaded(tmp_path)
    assert [trial.label for trial in comparison.trials] == [
        "grpo-trial1",
        "grpo-trial2",
        "right/kdrl-trial1",
        "right/kdrl-trial2",
        "wrong/kdrl-trial1",
        "wrong/kdrl-trial2",
    ]
    drawn = {trial.label: dict(trial.parameters) for trial in comparison.trials}
    assert drawn["right/kdrl-trial1"] == drawn["wrong/kdrl-trial1"] != drawn["right/kdrl-trial2"]
    for trial in comparison.trials:
        assert trial.config.learner.optimizer.lr == trial.parameters["learner.optimizer.lr"]
        assert trial.config.evaluation.prompts.model_dump() == {**VALIDATION, "people": {2: 1.0}}
        assert trial.config.evaluation.overlap == "drop_training"
        assert (trial.config.seed, trial.seed) == (1000, 1000)
    assert [dict(trial.parameters) for trial in loaded(tmp_path).trials] == list(drawn.values())


def test_chosen_values_are_those_of_the_runs_of_their_method_and_condition(tmp_path: Path) -> None:
    comparison = loaded(tmp_path, ("training.steps=3",))
    tuned = comparison.tuned(
        {
            ("grpo", None): {"learner.optimizer.lr": 2e-4},
            ("kdrl", "right"): {"objective.beta": 0.3, "learner.optimizer.lr": 1e-4},
            ("kdrl", "wrong"): {"objective.beta": 0.1, "learner.optimizer.lr": 2e-4},
        }
    )
    found = [
        (run.label, getattr(run.config.objective, "beta", None), run.config.learner.optimizer.lr) for run in tuned.runs
    ]
    assert found[:3] == [("grpo-seed0", None, 2e-4), ("right/kdrl-seed0", 0.3, 1e-4), ("wrong/kdrl-seed0", 0.1, 2e-4)]
    assert {run.config.training.steps for run in tuned.runs} == {3}
    assert tuned.runs[2].config.teacher == comparison.runs[2].config.teacher


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"trials": 3, "prompts": VALIDATION}}, r"methods.grpo.search has 2 combinations"),
        ({"seeds": [0, 1000]}, "tune.trial_seed must not be one of seeds"),
        ({"conditions": {"worst": {"overrides": {}}}}, "condition name 'worst' is reserved"),
        ({"methods": {"trrd": {}}}, r"methods.trrd.search has 0 combinations"),
    ],
)
def test_unequal_budget_used_seed_and_reserved_name_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, **changes)


def test_teacher_comparison_tunes_all_methods_with_one_budget_under_three_teachers() -> None:
    comparison = load_comparison(CONFIGS / "compare_teachers_cpu.yaml", seeds=[0])
    trials: dict[tuple[str, str | None], int] = {}
    for trial in comparison.trials:
        trials[trial.method, trial.condition] = trials.get((trial.method, trial.condition), 0) + 1
    assert set(trials.values()) == {6}
    assert len(trials) == len(comparison.runs) == 1 + 6 * 3
    teachers = {run.config.teacher and run.config.teacher.label for run in comparison.runs}
    assert teachers == {None, "starter:kk/teacher", "starter:kk/teacher-if-then", "starter:kk/teacher-if-then-or"}
