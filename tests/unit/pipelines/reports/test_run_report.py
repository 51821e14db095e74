"""Recorded metrics survive a restart, and the report shows them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pipelines.reports.run_report import write_report
from pipelines.run.cost import write_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.telemetry import Telemetry
from rlad.config import load_run_config
from rlad.config.monitoring.cost import CostConfig
from rlad.errors import RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.ledger import Ledger
from rlad.monitoring.cost import ReservedHours

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
    telemetry = Telemetry(run, start_step=start_step, figure_logs=[])
    if start_step == 0:
        telemetry.record_evaluation(0, evaluation(4), 1.0)
    for step in range(start_step + 1, end_step + 1):
        telemetry.record_step(step, step_metrics(step))
        telemetry.add_span("rollout", "group", 10.0 + step, 11.0 + step)
    telemetry.record_evaluation(end_step, evaluation(8), 1.0)
    telemetry.close()


def test_resuming_drops_records_after_the_checkpoint(run: RunDirectory) -> None:
    record(run, 0, 5)
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "cut sho')
    record(run, 3, 6)
    assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, 6]


def test_report_has_the_cost_by_pool(run: RunDirectory) -> None:
    record(run, 0, 2)
    write_report(run)
    assert "<h2>Cost</h2>" not in run.report.read_text()  # of a run of an earlier version
    hours = {"rollout": ReservedHours(gpu=6, cpu=12), "learner": ReservedHours(gpu=4, cpu=0.02)}
    write_cost(run, CostConfig(price_per_gpu_hour=2, currency="EUR"), hours, attempts=2, warned_of={})
    write_report(run)
    page = run.report.read_text()
    assert "<tr><td>rollout</td><td>6.00</td><td>12.00</td></tr>" in page
    assert "<tr><td>learner</td><td>4.00</td><td>0.02</td></tr>" in page
    assert "<td>all</td><td>10.00</td><td>12.02</td>" in page
    assert "over 2 attempts: 20.00 EUR. Shared teachers are not included." in page


def test_timeline_is_a_chrome_trace_of_begin_and_end_pairs(run: RunDirectory) -> None:
    record(run, 0, 2)
    events = json.loads(run.timeline.read_text())["traceEvents"]
    assert [event["ph"] for event in events] == ["b", "e"] * 2
    assert events[1]["ts"] - events[0]["ts"] == 1_000_000
    assert events[0]["id"] == events[1]["id"] != events[2]["id"]


def test_report_is_one_self_contained_page(run: RunDirectory) -> None:
    record(run, 0, 3)
    write_report(run)
    page = run.report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page), "the page loads another file"
    for text in ("40.0%", "80.0%", "+40.0", "50% generation", "3 / 6"):
        assert text in page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) >= 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_report_of_offline_run_shows_loss_and_no_reward(run: RunDirectory) -> None:
    telemetry = Telemetry(run, start_step=0, figure_logs=[])
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


def test_report_of_run_without_records_is_refused(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="nothing to report yet"):
        write_report(run)
