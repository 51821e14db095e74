"""Program of a tracker's process: `python -m pipelines.monitoring.trackers.child`.

Reads JSON lines from its standard input: first the tracker and the run, then figures. Answers each with a line on its
standard output, empty if it succeeded, otherwise the error. At the end of the input it closes the tracker: also when
the driver was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter

from pipelines.monitoring.trackers.tracker import TrackedRun, Tracker
from rlad.config.monitoring.trackers import MlflowTracker, TrackerConfig, TrackioTracker, WandbTracker
from rlad.credentials import redact


def main() -> int:
    """Serve the driver until its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the driver, which ends the input
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    settings = json.loads(sys.stdin.readline())
    run = TrackedRun(
        run_id=settings["run_id"],
        config=settings["config"],
        folder=Path(settings["folder"]),
        tensorboard=Path(settings["tensorboard"]),
        start_step=settings["start_step"],
    )
    config: TrackerConfig = TypeAdapter(TrackerConfig).validate_python(settings["tracker"])
    run.folder.mkdir(parents=True, exist_ok=True)
    _redirect_output(run.folder / f"{config.name}.log")
    try:
        tracker = _tracker_of(config, run)
    except Exception as error:  # noqa: BLE001 - the driver counts and reports any error of the library
        _answer(answers, error)
        return 1
    _answer(answers, None)
    for line in sys.stdin:
        figures: dict[str, Any] = json.loads(line)
        try:
            tracker.log(figures["step"], figures["values"])
        except Exception as error:  # noqa: BLE001 - as above
            _answer(answers, error)
        else:
            _answer(answers, None)
    tracker.close()
    return 0


def _tracker_of(config: TrackerConfig, run: TrackedRun) -> Tracker:
    """Return the tracker. Each library is imported only in the process of its tracker."""
    if isinstance(config, WandbTracker):
        from pipelines.monitoring.trackers.wandb_tracker import Wandb

        return Wandb(config, run)
    if isinstance(config, MlflowTracker):
        from pipelines.monitoring.trackers.mlflow_tracker import Mlflow

        return Mlflow(config, run)
    if isinstance(config, TrackioTracker):
        from pipelines.monitoring.trackers.trackio_tracker import Trackio

        return Trackio(config, run)
    from pipelines.monitoring.trackers.tensorboard import TensorBoard

    return TensorBoard(run)


def _redirect_output(path: Path) -> None:
    """Send what the library prints to a file, so that it does not mix with the answers."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _answer(answers: TextIO, error: Exception | None) -> None:
    text = "" if error is None else redact(f"{type(error).__name__}: {error}")
    answers.write(" ".join(text.split()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
