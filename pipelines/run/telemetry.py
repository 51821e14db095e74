"""Records of a run: metrics.jsonl, evaluations.jsonl, TensorBoard and timeline.json."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.evaluation.accuracy import EvaluationSummary

# Number of newest events that timeline.json keeps, which bounds the driver's memory in long runs.
_TIMELINE_EVENTS = 200_000


class Telemetry:
    """Recorder of one run. When a run continues from a checkpoint, records of later steps are removed."""

    def __init__(self, run: RunDirectory, *, start_step: int) -> None:
        self._run = run
        for path in (run.metrics, run.evaluations):
            self._keep_up_to(path, start_step)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=start_step + 1)
        self._events: deque[dict[str, Any]] = deque(maxlen=_TIMELINE_EVENTS)
        if run.timeline.exists():
            self._events.extend(json.loads(run.timeline.read_text())["traceEvents"])

    def record_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step.

        Args:
            step: Number of trained steps, so the first is 1.
            metrics: Metrics named `area/name_unit`.
        """
        self._append(self._run.metrics, {"step": step, "time": round(time.time(), 3), **metrics})
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def record_evaluation(self, step: int, summary: EvaluationSummary, elapsed_s: float) -> None:
        self._append(
            self._run.evaluations,
            {"step": step, "time": round(time.time(), 3), "elapsed_s": elapsed_s, **summary.as_dict()},
        )
        self._board.add_scalar("evaluation/accuracy", summary.overall.mean, step)
        for group, row in summary.groups.items():
            self._board.add_scalar(f"evaluation/accuracy_{group}", row.mean, step)
        self._board.flush()

    def add_span(self, pool: str, name: str, start: float, end: float, *, worker: str | None = None) -> None:
        """Add an event of a pool, or of one of its workers, to the timeline.

        Events of one pool may overlap: they are asynchronous events of the Chrome trace format, which Perfetto lays out
        in rows.

        Args:
            pool: Name of the pool.
            name: Name of the event.
            start: Begin, seconds since the epoch.
            end: End, seconds since the epoch.
            worker: Name of the worker, if one did it.
        """
        identity = f"{pool}:{name}:{start}"
        for phase, at in (("b", start), ("e", end)):
            self._events.append(
                {
                    "name": name,
                    "cat": pool,
                    "ph": phase,
                    "id": identity,
                    "pid": pool,
                    "tid": worker or pool,
                    "ts": round(at * 1e6),
                }
            )

    def write_timeline(self) -> None:
        self._run.seals.write(
            self._run.timeline, json.dumps({"traceEvents": list(self._events), "displayTimeUnit": "ms"})
        )

    def close(self) -> None:
        self.write_timeline()
        self._board.close()

    def _keep_up_to(self, path: Path, step: int) -> None:
        """Remove the lines of later steps, and a last line that a kill cut short."""
        if path.exists():
            kept = [line for line in read_json_lines(path) if line["step"] <= step]
            self._run.seals.write(path, "".join(json.dumps(line) + "\n" for line in kept))

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._run.seals.append(path, json.dumps(line) + "\n")
