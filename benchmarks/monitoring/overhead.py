"""Overhead of monitoring: smoke runs in pairs, with every tracker and all samples, and without any.

    python -m benchmarks.monitoring.overhead --json OUT

Metrics for Prometheus are on in both: a run always has them. Start and end are left out, since trackers import their
libraries then. The steps of the smoke run take a fraction of a second, and its processes share the cores, so a longer
step pays less.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.chaos.smoke_run import smoke_run
from benchmarks.measure import JsonPath, Pairs, Ratio, Result, measure_pairs, show
from pipelines.run.directory import read_json_lines

_TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "{name: wandb, mode: offline}",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
# The first steps have the first calls of everything.
_FIRST_STEP = 6
_WITHOUT = ("tracking=[]", "samples.share=0")


def step_s(settings: tuple[str, ...], steps: int) -> float:
    """Run the smoke configuration, and return the mean duration of a step, seconds.

    Args:
        settings: Settings as `key=value`.
        steps: Number of steps.

    Raises:
        RuntimeError: The run failed.
    """
    common = (f"training.steps={steps}", "evaluation.every_steps=0", f"checkpoints.every_steps={steps}")
    with tempfile.TemporaryDirectory() as folder, smoke_run(Path(folder) / "run", [*common, *settings]) as run:
        if not run.finish("smoke run").is_right:
            raise RuntimeError(run.tail())
        times = [line["time/step_s"] for line in read_json_lines(run.directory.metrics)]
    counted = times[_FIRST_STEP:]
    return float(sum(counted) / len(counted))


def main(
    pairs: Pairs = 5,
    steps: Annotated[int, typer.Option(min=_FIRST_STEP + 1, help="Number of steps of a run.")] = 60,
    json_path: JsonPath = None,
) -> None:
    """Measure what trackers and samples add to a step."""
    console = Console()
    installed = [name for name in _TRACKERS if find_spec(name) is not None]
    everything = (f"tracking=[{','.join(_TRACKERS[name] for name in installed)}]", "samples.share=1")

    def report() -> None:
        console.print("a pair is measured")

    with console.status("smoke runs in pairs"):
        times = measure_pairs(
            lambda: step_s(everything, steps), lambda: step_s(_WITHOUT, steps), pairs=pairs, warm_ups=0, on_pair=report
        )
    result = Result(
        benchmark="monitoring overhead",
        ratios=[
            Ratio(
                name="monitored_over_plain",
                value=times.ratio,
                means="step with all trackers and samples over step without",
                target=1.02,
            )
        ],
        figures=times.figures("monitored", "plain"),
        settings={"steps": steps, "pairs": pairs, "trackers": installed},
    )
    show(result, json_path, console)


if __name__ == "__main__":
    typer.run(main)
