"""The table has every figure that the code computes, under one valid name each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlad.monitoring.reference import reference
from rlad.monitoring.table import METRICS, metric_of_figure

ROOT = Path(__file__).parents[4]
# Everything that computes figures of a step.
SOURCES = [
    "rlad/objectives",
    "actors/learner/rank.py",
    "actors/engines/zero_engine/update_metrics.py",
    "pipelines/training/step_metrics.py",
    "pipelines/training/utilization.py",
    "pipelines/run/telemetry.py",
]
FIGURE = re.compile(r"(reward|verifier|teacher|rollout|traces|time|learner|objective|idle|evaluation)/[a-z_0-9*]+")


# Names that are completed with one of a few words, by the words.
COMPLETED = {
    "learner/*_s": ("wait", "train", "send", "checkpoint"),
    "objective/*_missing_tokens": ("behaviour", "teacher", "reference"),
    "objective/log_ratio_*_mean": ("behaviour", "teacher"),
    "objective/log_ratio_*_abs_mean": ("behaviour", "teacher"),
    "verifier/*": ("correct", "wrong", "unparseable", "timeout", "error"),
}


def figures(source: str) -> Iterator[str]:
    """Yield the names of figures in the literals of a module. A value in an f-string becomes `*`."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        else:
            continue
        if FIGURE.fullmatch(text):
            yield text


def test_every_figure_in_the_code_has_a_metric() -> None:
    folders = [ROOT / each for each in SOURCES]
    paths = [path for each in folders for path in ([each] if each.suffix else each.glob("*.py"))]
    found = {figure for path in paths for figure in figures(path.read_text())} - {"learner/logprob_gap"}  # a prefix
    assert len(found) > 50
    names = {figure.replace("*", word) for figure in found for word in COMPLETED.get(figure, ("any",))}
    assert {name for name in names if metric_of_figure(name) is None} == set()


@pytest.mark.parametrize(
    ("figure", "name", "labels"),
    [
        ("reward/mean", "rlad_reward_mean", {}),
        ("reward/mean_math", "rlad_task_reward_mean", {"task": "math"}),
        ("evaluation/accuracy", "rlad_evaluation_accuracy", {}),
        ("evaluation/accuracy_3_people", "rlad_evaluation_group_accuracy", {"group": "3_people"}),
        ("teacher/big-one_tokens", "rlad_teacher_tokens", {"teacher": "big-one"}),
        ("idle/teacher-big", "rlad_pool_idle_share", {"pool": "teacher-big"}),
        ("learner/gradient_norm_pass_2", "rlad_learner_gradient_norm_by_pass", {"update_pass": "2"}),
        ("verifier/timeout", "rlad_verifier_timeout", {}),
    ],
)
def test_labels_come_from_the_name_of_the_figure(figure: str, name: str, labels: dict[str, str]) -> None:
    found = metric_of_figure(figure)
    assert found is not None
    assert (found[0].name, dict(found[1])) == (name, labels)
    assert set(labels) <= set(found[0].labels)


def test_unknown_figure_has_no_metric() -> None:
    assert metric_of_figure("objective/of_a_user") is None


def test_names_are_valid_and_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"rlad_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.description.endswith(".")


def test_reference_page_is_generated_from_the_table() -> None:
    assert (ROOT / "docs" / "reference" / "metrics.md").read_text() == reference(), "run `make reference`"
