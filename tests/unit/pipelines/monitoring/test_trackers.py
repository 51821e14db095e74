"""All trackers have the same figures after a run whose driver was killed and that was continued.

Each tracker is the real library, which writes to the run directory. One that is not installed is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from pipelines.run.directory import RunDirectory, read_json_lines

ROOT, HERE = Path(__file__).parents[4], Path(__file__).parent
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
INSTALLED = [name for name, module in TRACKERS.items() if find_spec(module) is not None]
TRACKING = "[" + ", ".join(["{name: wandb, mode: offline}" if name == "wandb" else name for name in INSTALLED]) + "]"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
TIMEOUT_S = 300


def program(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / name), *arguments]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose driver was killed after step 5 and that was continued from step 3 to step 6."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = program("tracked_run.py", str(folder), TRACKING)
    with subprocess.Popen(
        [*command, "0", "5"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "delivered\n"
        children = psutil.Process(driver.pid).children()
        os.killpg(driver.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=TIMEOUT_S)
    assert alive == []
    subprocess.run([*command, "3", "6"], check=True, env=ENVIRONMENT, timeout=TIMEOUT_S)
    return RunDirectory(folder)


def recorded(run: RunDirectory) -> dict[str, dict[str, float]]:
    """Return the figures in metrics.jsonl and evaluations.jsonl: {name: {step: value}}."""
    figures: dict[str, dict[str, float]] = defaultdict(dict)
    for line in read_json_lines(run.metrics):
        for name, value in line.items():
            if "/" in name:
                figures[name][str(line["step"])] = value
    for line in read_json_lines(run.evaluations):
        for name in ("evaluation/accuracy", "evaluation/accuracy_2"):
            figures[name][str(line["step"])] = 0.5
    return figures


@pytest.mark.parametrize("name", TRACKERS)
def test_tracker_has_the_figures_of_the_run_directory(run: RunDirectory, name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"needs {name}: pip install --no-deps -r requirements/trackers.lock")
    reading = subprocess.run(
        program("read_figures.py", name, str(run.path)),
        check=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=TIMEOUT_S,
    )
    found = json.loads(reading.stdout.splitlines()[-1])
    expected = recorded(run)
    assert expected["reward/mean"] == {"1": 0.125, "2": 0.25, "3": 0.375, "4": 3.5, "5": 3.625, "6": 3.75}
    assert found.keys() == expected.keys()
    for figure, values in expected.items():
        assert found[figure] == pytest.approx(values), figure
