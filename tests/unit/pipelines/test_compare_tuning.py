"""A tuned comparison under two conditions, of recorded runs: choice of the values, reports, and the worst condition."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipelines.compare import ComparisonDirectory, compare
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config.comparison import Comparison, PlannedRun, PlannedTrial, load_comparison
from rlad.errors import ConfigError, PlanError
from rlad.evaluation.accuracy import PromptResult, summarise

from ..rlad.config.test_comparison_tuning import SETTINGS

PROMPTS = 50
# Number of prompts solved after training. The wrong teacher costs kdrl 20 of them.
SOLVED = {("grpo", None): 40, ("kdrl", "right"): 45, ("kdrl", "wrong"): 25}
# Values that are best on the validation prompts. With all others, one prompt less is solved.
BEST = {
    ("grpo", None): {"learner.optimizer.lr": 2e-4},
    ("kdrl", "right"): {"objective.beta": 0.3, "learner.optimizer.lr": 1e-4},
    ("kdrl", "wrong"): {"objective.beta": 0.1, "learner.optimizer.lr": 2e-4},
}


def planned(tmp_path: Path, **changes: object) -> Comparison:
    search = {
        "grpo": {"learner.optimizer.lr": [1e-4, 2e-4, 3e-4, 4e-4]},
        "kdrl": {"objective.beta": [0.1, 0.3], "learner.optimizer.lr": [1e-4, 2e-4]},
    }
    methods = {name: {**SETTINGS["methods"][name], "search": values} for name, values in search.items()}
    tune = {**SETTINGS["tune"], "trials": 4}
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "methods": methods, "tune": tune, **changes}))
    return load_comparison(path, ["training.steps=4"])


def record(run: PlannedRun, directory: RunDirectory, solved: int) -> None:
    """Write the files of a finished run."""
    with directory.hold(run.config, resume=False):
        directory.export.mkdir()
    lines = [
        {
            "step": step,
            "time": 0.0,
            "elapsed_s": 1.0,
            **summarise(
                [
                    PromptResult(
                        prompt_id=f"p{number}",
                        groups=("plain" if number % 2 else "if_then",),
                        rewards=(float(number < count),),
                        response_tokens=(4,),
                        num_truncated=0,
                    )
                    for number in range(PROMPTS)
                ]
            ).as_dict(),
        }
        for step, count in ((0, 10), (4, solved))
    ]
    directory.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    directory.metrics.write_text(json.dumps({"step": 1, "time": 0.0, "time/step_s": 7.0}) + "\n")


def record_all(comparison: Comparison, directory: ComparisonDirectory) -> None:
    for trial in comparison.trials:
        is_best = dict(trial.parameters) == BEST[trial.method, trial.condition]
        record(trial, directory.run(trial), SOLVED[trial.method, trial.condition] - (not is_best))
    for run in comparison.tuned(BEST).runs:
        record(run, directory.run(run), SOLVED[run.method, run.condition] - run.seed)


def printed(comparison: Comparison, directory: ComparisonDirectory) -> str:
    console = Console(width=150, file=io.StringIO())
    compare(comparison, directory, resume=True, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_runs_have_the_best_values_and_no_finished_trial_runs_again(tmp_path: Path) -> None:
    """Finished runs with other values would be refused, so the chosen values are those of `BEST`."""
    comparison, directory = planned(tmp_path), ComparisonDirectory(tmp_path / "runs")
    record_all(comparison, directory)
    text = printed(comparison, directory)
    assert "12 trials, 12 already finished" in text
    assert "6 runs, 6 already finished" in text
    assert "wrong/kdrl: learner.optimizer.lr=0.0002, objective.beta=0.1 (50.0% on validation prompts)" in text
    lines = json.loads(directory.tuning.read_text())
    assert len(lines) == 12
    chosen = {(line["method"], line["condition"]): line for line in lines if line["is_chosen"]}
    assert {place: line["parameters"] for place, line in chosen.items()} == BEST
    assert (chosen["kdrl", "right"]["start"], chosen["kdrl", "right"]["accuracy"]) == (0.2, 0.9)
    assert {line["training_s"] for line in lines} == {7.0}


def test_reports_are_by_condition_and_for_the_worst_condition_of_each_run(tmp_path: Path) -> None:
    comparison, directory = planned(tmp_path), ComparisonDirectory(tmp_path / "runs")
    record_all(comparison, directory)
    text = printed(comparison, directory)
    means = {}
    for condition in ("right", "wrong", "worst"):
        report = directory.of(condition)
        assert report.page.is_file()
        accuracy = json.loads(report.figures.read_text())["accuracy"]
        means[condition] = {method: accuracy[method]["all"]["mean"] for method in ("grpo", "kdrl")}
    # Seeds 0 and 1 solve n and n - 1 of 50 prompts.
    assert means["right"] == pytest.approx({"grpo": 0.79, "kdrl": 0.89})
    assert means["wrong"] == pytest.approx({"grpo": 0.79, "kdrl": 0.49})
    assert means["worst"] == means["wrong"]
    assert "worst condition of each run" in text
    assert text.count("kdrl is worse than grpo (-30.0 points") == 2


def test_trial_with_other_settings_is_refused(tmp_path: Path) -> None:
    comparison, directory = planned(tmp_path), ComparisonDirectory(tmp_path / "runs")
    record_all(comparison, directory)
    other = planned(tmp_path, overrides={"rollout.group_size": 2})
    with pytest.raises(ConfigError, match="was started with other settings of rollout"):
        printed(other, directory)


def test_trial_shares_the_evaluation_of_the_start_with_other_trials(tmp_path: Path) -> None:
    """All trials have one seed, start from one student and are evaluated on the same prompts."""
    comparison, directory = planned(tmp_path), ComparisonDirectory(tmp_path / "runs")
    first, second = comparison.trials[0], comparison.trials[-1]
    assert isinstance(second, PlannedTrial)
    record(first, directory.run(first), 20)
    from pipelines.compare import _share_start

    _share_start(second, directory.run(second), comparison.trials, directory)
    [start] = read_json_lines(directory.run(second).evaluations)
    assert (start["step"], start["taken_from"]) == (0, "grpo-trial1")


def test_validation_prompts_that_are_evaluation_prompts_are_refused(tmp_path: Path) -> None:
    evaluation = {"source": "knights_knaves", "form": "compact", "people": {2: 1}, "count": 24, "split": "evaluation"}
    comparison = planned(tmp_path, tune={"trials": 4, "prompts": {**evaluation, "seed": 1}})
    with pytest.raises(PlanError, match="24 of 24 prompts of tune.prompts are also evaluation prompts"):
        printed(comparison, ComparisonDirectory(tmp_path / "runs"))
