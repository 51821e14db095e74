"""A comparison of finished runs: the recorded runs are not trained again, and the results agree with their records."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import ray
from matplotlib import image
from rich.console import Console

from pipelines.compare import ComparisonDirectory, compare, is_finished
from pipelines.run.directory import RunDirectory
from rlad.config.comparison import Comparison, PlannedRun, load_comparison
from rlad.errors import ConfigError, RunDirectoryError
from rlad.evaluation.accuracy import PromptResult, summarise

from .console_text import WIDTH, cells_of

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
PROMPTS = 60
# Share of prompts solved after training, by method.
ACCURACIES = {"trrd": 0.9, "grpo": 0.5, "same": 0.9}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    grpo, same = "{objective: {name: grpo}, teacher: null}", "{objective.alpha: 0.7}"
    methods = f"{{trrd: {{}}, grpo: {{overrides: {grpo}}}, same: {{overrides: {same}}}}}"
    path = tmp_path / "compare.yaml"
    path.write_text(
        f"name: toy\nbase: {SMOKE}\nseeds: [0, 1, 2]\noverrides: {{training.steps: 4}}\nmethods: {methods}\n"
    )
    return load_comparison(path)


@pytest.fixture
def directory(tmp_path: Path, comparison: Comparison) -> ComparisonDirectory:
    directory = ComparisonDirectory(tmp_path / "runs")
    for planned in comparison.runs:
        record(planned, directory.run(planned))
    return directory


def record(planned: PlannedRun, run: RunDirectory) -> None:
    """Write the files of a finished run that solves the easiest prompts; how many depends on method and seed."""
    with run.hold(planned.config, resume=False):
        run.export.mkdir()
    solved_after = round(ACCURACIES[planned.method] * PROMPTS) + planned.seed - 1
    lines = []
    for step, solved in ((0, 20), (2, (20 + solved_after) // 2), (4, solved_after)):
        results = [
            PromptResult(
                prompt_id=f"p{i}",
                groups=(str(2 + i % 3),),
                rewards=(float(i < solved),),
                response_tokens=(40,),
                num_truncated=0,
            )
            for i in range(PROMPTS)
        ]
        lines.append({"step": step, "time": 0.0, "elapsed_s": 1.0, **summarise(results).as_dict()})
    run.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [
        {
            "step": step,
            "time": 0.0,
            "reward/mean": step / 10,
            "rollout/response_tokens": 500.0,
            "time/step_s": 3.0,
            "time/score_s": 0.25,
        }
        for step in range(1, 5)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in steps))


def printed(comparison: Comparison, directory: ComparisonDirectory) -> str:
    console = Console(width=WIDTH, file=io.StringIO())
    compare(comparison, directory, resume=True, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_finished_runs_are_not_trained_again(comparison: Comparison, directory: ComparisonDirectory) -> None:
    before = {path: path.read_bytes() for path in directory.path.rglob("*.jsonl")}
    text = printed(comparison, directory)
    assert "9 runs, 9 already finished" in text
    assert not ray.is_initialized()
    assert {path: path.read_bytes() for path in directory.path.rglob("*.jsonl")} == before


def test_tables_agree_with_the_recorded_runs(comparison: Comparison, directory: ComparisonDirectory) -> None:
    text = printed(comparison, directory)
    # 53, 54 and 55 of 60 prompts: one prompt is 1.667 points.
    # By people, of 20 prompts each: 18, 18, 19; then 18 always; then 17, 18, 18.
    assert re.search(r"trrd\W+91\.7 ± 2\.9\W+90\.0 ± 0\.0\W+88\.3 ± 2\.9\W+90\.0 ± 1\.7", text)
    assert re.search(r"grpo\W+.*50\.0 ± 1\.7", text)
    assert re.search(r"start\W+.*33\.3 ± 0\.0", text)
    assert re.search(r"method.*2.*3.*4.*average.*area", text)
    # Evaluations of trrd after 0, 2 and 4 steps: 20, 36, 53 prompts; 20, 37, 54; 20, 37, 55. The area of the first is
    # (20 + 2 * 36 + 53) / 4 = 36.25 of 60 prompts, of the others 37 and 37.25.
    assert re.search(r"trrd\W+.*90\.0 ± 1\.7\W+61\.4 ± 0\.9", text)
    assert re.search(r"grpo\W+3\.00\W+0\.25\W+2,000\W+0\W+12", text)
    assert re.search(r"trrd\W+3\.00\W+0\.25\W+2,000\W+2,000\W+12", text)
    assert max(map(len, text[: text.index("report:")].splitlines())) <= WIDTH
    cells = cells_of(text)
    assert {"method", "average", "91.7 ± 2.9", "scoring", "wait (s)", "generated", "tokens", "2,000", "3.00"} <= cells
    assert "grpo is worse than trrd (-40.0 points" in text
    assert "same and trrd are equal for practical purposes (+0.0 points" in text
    assert "By the area under the learning curve, grpo is worse than trrd (-20.0 points" in text


def test_results_are_written_as_json(comparison: Comparison, directory: ComparisonDirectory) -> None:
    printed(comparison, directory)
    figures = json.loads(directory.figures.read_text())
    assert figures["accuracy"]["trrd"]["all"]["mean"] == pytest.approx(0.9)
    assert figures["accuracy"]["trrd"]["all"]["sd"] == pytest.approx(1 / PROMPTS)
    assert figures["curve"]["grpo"]["4"]["mean"] == pytest.approx(0.5)
    assert [(each["method"], each["verdict"]) for each in figures["differences"]] == [
        ("grpo", "worse"),
        ("same", "equal"),
    ]
    assert figures["areas"]["trrd"]["mean"] == pytest.approx((36.25 + 37 + 37.25) / 3 / 60)
    assert [(each["measure"], each["verdict"]) for each in figures["area_differences"]] == [
        ("area", "worse"),
        ("area", "equal"),
    ]
    assert [each["final"] for each in figures["runs"] if each["method"] == "trrd"] == pytest.approx(
        [53 / 60, 54 / 60, 55 / 60]
    )
    assert directory.figures.stat().st_size < 20_000


def test_page_is_self_contained_and_figures_are_drawn(comparison: Comparison, directory: ComparisonDirectory) -> None:
    printed(comparison, directory)
    page = directory.page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page), "the page loads another file"
    for text in (
        "grpo is worse than trrd",
        "90.0 ± 1.7",
        "61.4 ± 0.9",
        "By the area under the learning curve, grpo is",
        "objective.alpha: 0.7",
        "Student's t",
    ):
        assert text in page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    for name in ("curves", "accuracy", "differences"):
        pixels = image.imread(directory.path / f"{name}.png")[..., :3]
        # The figure contains the colours of the first two methods.
        for colour in ((0x25, 0x63, 0xEB), (0xD9, 0x77, 0x06)) if name != "differences" else ((0xD9, 0x77, 0x06),):
            assert (np.abs(pixels - np.array(colour) / 255).max(axis=-1) < 0.02).sum() > 50, (name, colour)


def test_comparison_of_selected_methods_omits_the_others(
    comparison: Comparison, directory: ComparisonDirectory, tmp_path: Path
) -> None:
    text = printed(load_comparison(tmp_path / "compare.yaml", methods=["grpo", "trrd"], seeds=[1]), directory)
    assert "trrd against grpo: +40.0 points with one seed" in text
    assert "same" not in text
    assert not (directory.path / "differences.png").exists()


def test_run_with_last_evaluation_and_export_is_finished(
    comparison: Comparison, directory: ComparisonDirectory
) -> None:
    planned = comparison.runs[0]
    run = directory.run(planned)
    assert is_finished(planned, run)
    run.export.rmdir()
    assert not is_finished(planned, run)
    run.export.mkdir()
    run.evaluations.write_text("".join(run.evaluations.read_text().splitlines(keepends=True)[:-1]))
    assert not is_finished(planned, run)
    assert not is_finished(planned, RunDirectory(directory.path / "nowhere"))


def test_used_directory_is_refused_without_resume(comparison: Comparison, directory: ComparisonDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="--resume"):
        compare(comparison, directory, resume=False, console=Console(file=io.StringIO()))


def test_finished_runs_with_different_settings_are_refused(directory: ComparisonDirectory, tmp_path: Path) -> None:
    longer = load_comparison(tmp_path / "compare.yaml", ["training.steps=9"])
    with pytest.raises(ConfigError, match="was started with other settings of training"):
        compare(longer, directory, resume=True, console=Console(file=io.StringIO()))
