"""A run's files tell the history that survives, and the report shows it."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.reports.run_report import write_report
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.progress import RunProgress, accuracy_table, step_line
from pipelines.run.telemetry import Telemetry
from rlad.config import load_run_config
from rlad.errors import RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.ledger import Ledger

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


def evaluation(solved: int) -> EvaluationSummary:
    return summarise(
        [
            PromptResult(
                prompt_id=str(index),
                groups=(str(2 + index % 2),),
                rewards=(float(index < solved),),
                response_tokens=(9,),
                num_truncated=0,
            )
            for index in range(10)
        ]
    )


def step_metrics(step: int) -> dict[str, float]:
    return {
        "reward/mean": step / 10,
        "rollout/tokens_per_s": 1234.0,
        "rollout/response_tokens_mean": 40.0,
        "time/step_s": 4.0,
        "time/generate_s": 2.0,
        "time/score_s": 0.4,
        "time/learn_s": 1.2,
        "time/weights_s": 0.4,
        "learner/gradient_norm": 1.0,
    }


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    with directory.hold(load_run_config(SMOKE), resume=False):
        Ledger(directory.ledger).close()
    return directory


def record(run: RunDirectory, start_step: int, end_step: int) -> None:
    telemetry = Telemetry(run, start_step=start_step)
    if start_step == 0:
        telemetry.record_evaluation(0, evaluation(4), 1.0)
    for step in range(start_step + 1, end_step + 1):
        telemetry.record_step(step, step_metrics(step))
        telemetry.add_span("rollout", "group", 10.0 + step, 11.0 + step)
    telemetry.record_evaluation(end_step, evaluation(8), 1.0)
    telemetry.close()


def test_continuing_from_a_checkpoint_forgets_what_came_after_it(run: RunDirectory) -> None:
    record(run, 0, 5)
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "cut sho')
    record(run, 3, 6)
    assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, 6]
    board = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in board.Scalars("reward/mean")] == [1, 2, 3, 4, 5, 6]


def test_the_timeline_is_a_chrome_trace_of_begin_and_end_pairs(run: RunDirectory) -> None:
    record(run, 0, 2)
    events = json.loads(run.timeline.read_text())["traceEvents"]
    assert [event["ph"] for event in events] == ["b", "e"] * 2
    assert events[1]["ts"] - events[0]["ts"] == 1_000_000
    assert events[0]["id"] == events[1]["id"] != events[2]["id"]


def test_the_report_is_one_page_that_needs_nothing_else(run: RunDirectory) -> None:
    record(run, 0, 3)
    write_report(run)
    page = run.report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page), "nothing is loaded from elsewhere"
    for text in ("40.0%", "80.0%", "+40.0", "50% is generation", "3 / 6"):
        assert text in page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) >= 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_the_report_of_an_offline_run_shows_its_loss_and_no_reward(run: RunDirectory) -> None:
    telemetry = Telemetry(run, start_step=0)
    for step in (1, 2):
        times = {name: value for name, value in step_metrics(step).items() if name.startswith("time/")}
        telemetry.record_step(
            step, {**times, "learner/loss": 1 / step, "learner/gradient_norm": 1.0, "traces/response_tokens_mean": 40.0}
        )
    telemetry.close()
    write_report(run)
    page = run.report.read_text()
    assert "Trace length (tokens)" in page
    assert "Training reward" not in page


def test_a_report_of_a_run_that_recorded_nothing_is_refused(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="nothing to report yet"):
        write_report(run)


def test_the_progress_line_says_where_the_time_goes() -> None:
    line = step_line(step_metrics(5), accuracy=0.61, workers={"rollout": 1})
    assert line == (
        "reward 0.50  accuracy 61.0%  1,234 tok/s  4.0 s = generate 50% score 10% learn 30% weights 10%  "
        "rollout bounds the step (50%): one more rollout worker would save about 25%"
    )


def test_the_progress_line_of_an_offline_run_says_its_loss() -> None:
    times = {name: value for name, value in step_metrics(5).items() if name.startswith("time/")}
    line = step_line({**times, "learner/loss": 0.1234, "traces/tokens_per_s": 5678.0}, accuracy=None, workers={})
    assert line.startswith("loss 0.123  5,678 tok/s  4.0 s = generate 50% score 10% learn 30% weights 10%")


def test_a_phase_that_counts_prints_a_line_each_tenth_where_nobody_watches() -> None:
    console = Console(width=100, file=io.StringIO())
    with RunProgress(console, total_steps=0) as progress, progress.phase("making traces", total=25) as phase:
        for number in range(1, 26):
            phase.advance(f"{number} accepted")
    lines = [line for line in console.file.getvalue().splitlines() if "accepted" in line]  # type: ignore[attr-defined]
    assert [line.split()[2] for line in lines] == [f"{number}/25" for number in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)]


def test_the_table_compares_before_and_after_by_group() -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(accuracy_table("Accuracy", {"before": evaluation(4), "after": evaluation(8)}, group_by="people"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"all\W+10\W+40\.0%.*80\.0%.*\+40\.0", text)
    assert re.search(r"\b2\W+5\W+40\.0%", text)
