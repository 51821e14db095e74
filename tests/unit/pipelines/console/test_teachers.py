"""The teachers of all runs: where each is, which runs use it, and their figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fastapi.testclient import TestClient

from pipelines.console.data.runs import Runs
from pipelines.console.data.teachers import teachers_of


def write_run(root: Path, name: str, teachers: Mapping[str, Any], metrics: Sequence[Mapping[str, float]] = ()) -> None:
    """Write the files of a run that the page reads."""
    run = root / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"objective": {"name": "trrd"}, "training": {}, **teachers}))
    lines = [json.dumps({"step": step, "time": 0.0, **each}) for step, each in enumerate(metrics, 1)]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_each_teacher_has_its_runs_and_their_figures(tmp_path: Path) -> None:
    steps = [
        {"teacher/math_tokens": 10.0 * step, "idle/teacher-math": step / 10, "objective/log_ratio_teacher_mean": 0.5}
        for step in (1, 2, 6)
    ]
    services = {"math": {"service": "math-teacher"}, "code": {"url": "https://teachers/code"}}
    write_run(tmp_path, "several", {"teachers": services, "teacher": None}, steps)
    write_run(tmp_path, "another", {"teacher": {"service": "math-teacher"}})
    write_run(tmp_path, "own", {"teacher": {"path": "Qwen/Qwen3-8B", "replicas": 4}})
    write_run(tmp_path, "grpo", {"teacher": None})
    found = {view.place: view for view in teachers_of(Runs(tmp_path))}
    assert {place: view.kind for place, view in found.items()} == {
        "math-teacher": "service",
        "https://teachers/code": "remote service",
        "Qwen/Qwen3-8B": "model",
    }
    assert {use.run.name for use in found["math-teacher"].uses} == {"several", "another"}
    (use,) = [use for use in found["math-teacher"].uses if use.run.name == "several"]
    assert (use.id, use.replicas, use.tokens, use.idle, use.kl, use.disagreement) == ("math", None, 60, 0.2, 0.5, None)
    (own,) = found["Qwen/Qwen3-8B"].uses
    assert (own.id, own.replicas, own.tokens, own.idle) == ("teacher", 4, None, None)


def test_damaged_sections_and_runs_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "text", {"teacher": "Qwen/Qwen3-8B", "teachers": ["a"]})
    write_run(tmp_path, "empty", {"teacher": {"path": None}})
    write_run(tmp_path, "broken", {"teacher": {"path": "m"}})
    (tmp_path / "broken" / "metrics.jsonl").write_text("{\n{\n")
    assert teachers_of(Runs(tmp_path)) == []


def test_page_shows_teachers_of_running_runs_first(visit: Callable[..., TestClient]) -> None:
    page = visit("vera").get("/teachers").text
    assert "starter:kk-smoke/teacher" in page
    assert "used by 1 running run" in page
    assert "6,000" in page  # tokens of the last of 60 steps
    assert "30.0%" in page  # disagreement
    assert page.index("kk-distill") < page.index("sweep/alpha-0.1")


def test_page_without_teachers_says_how_to_get_one(tmp_path: Path, visit: Callable[..., TestClient]) -> None:
    client = visit("vera")
    client.app.state.console.runs.root = tmp_path  # type: ignore[attr-defined]
    assert "has a teacher. A run with one" in client.get("/teachers").text
