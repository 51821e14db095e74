"""A run records how it ended, and a stop is not a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.cluster.live_run import ended_state, print_status
from pipelines.run.cost import write_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.status import RunStatus, read_status, recording_status
from rlad.config import load_run_config
from rlad.config.monitoring.cost import CostConfig
from rlad.errors import EngineError, StopRequestedError
from rlad.monitoring.cost import ReservedHours

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    with directory.hold(load_run_config(SMOKE), resume=False):
        directory.metrics.write_text(json.dumps({"step": 3}) + "\n")
    return directory


def status_text(run: RunDirectory) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        print_status(run, None, console)
    return captured.get()


def test_status_has_the_cost_if_the_run_recorded_one(run: RunDirectory) -> None:
    assert "cost:" not in status_text(run)
    hours = {"rollout": ReservedHours(gpu=8, cpu=4)}
    write_cost(run, CostConfig(price_per_gpu_hour=2), hours, attempts=1, warned_of={})
    assert "cost: 8.00 GPU-hours, 4.00 CPU-hours, 16.00 USD" in status_text(run)


@pytest.mark.parametrize(
    ("end", "status", "reason", "shown"),
    [
        (StopRequestedError("stopped on request after 3 steps"), "stopped", "stopped on request after 3 steps", None),
        (KeyboardInterrupt(), "stopped", "interrupted (KeyboardInterrupt)", None),
        (SystemExit(15), "stopped", "interrupted (SystemExit)", None),  # SIGTERM
        (EngineError("no memory\nTraceback"), "failed", "no memory", None),
        (RuntimeError(), "failed", "RuntimeError", None),
        (None, "finished", None, "finished, 3 of"),
    ],
)
def test_the_end_of_a_run_is_recorded(
    run: RunDirectory, end: BaseException | None, status: str, reason: str | None, shown: str | None
) -> None:
    def work() -> None:
        with recording_status(run):
            recorded = read_status(run)
            assert recorded is not None
            assert recorded.status is RunStatus.RUNNING
            if end is not None:
                raise end

    if end is None:
        work()
    else:
        with pytest.raises(type(end)):
            work()
    recorded = read_status(run)
    assert recorded is not None
    assert (recorded.status, recorded.reason) == (status, reason)
    state = ended_state(run)
    assert (state.phase, state.step) == (status, 3)
    text = status_text(run)
    assert (shown or f"{status}; continue it with --resume, 3 of") in text
    assert reason is None or reason in text


def test_a_killed_run_is_neither_stopped_nor_failed(run: RunDirectory) -> None:
    with pytest.raises(StopRequestedError), recording_status(run):
        running = run.status.read_text()
        raise StopRequestedError("enough")
    run.status.write_text(running)
    assert ended_state(run).phase == "not running"
    assert "not running; continue it with --resume, 3 of" in status_text(run)


def test_a_run_without_a_status_is_judged_by_its_export(run: RunDirectory) -> None:
    assert (read_status(run), ended_state(run).phase) == (None, "not running")
    run.export.mkdir()
    assert ended_state(run).phase == "finished"
    run.status.write_text("{")
    assert read_status(run) is None
