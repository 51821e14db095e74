"""Records of a run: metrics.jsonl, evaluations.jsonl, timeline.json, and the figures that its trackers get."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.evaluation.accuracy import EvaluationSummary

# Number of newest events that timeline.json keeps, which bounds the driver's memory in long runs.
_TIMELINE_EVENTS = 200_000


class FigureLog(Protocol):
    """Takes the figures of steps without waiting and without errors, as trackers and metrics of a run do."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...


class Telemetry:
    """Recorder of one run. When a run continues from a checkpoint, records of later steps are removed."""

    def __init__(self, run: RunDirectory, *, start_step: int, figure_logs: Sequence[FigureLog]) -> None:
        """
        Args:
            run: The run directory.
            start_step: Number of trained steps from which the run starts.
            figure_logs: Get all figures too.
        """
        self._run, self._figure_logs = run, figure_logs
        for path in (run.metrics, run.evaluations):
            self._keep_up_to(path, start_step)
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
        self._log_figures(step, metrics)

    def record_evaluation(self, step: int, summary: EvaluationSummary, elapsed_s: float) -> None:
        self._append(
            self._run.evaluations,
            {"step": step, "time": round(time.time(), 3), "elapsed_s": elapsed_s, **summary.as_dict()},
        )
        groups = {f"evaluation/accuracy_{group}": row.mean for group, row in summary.groups.items()}
        self._log_figures(step, {"evaluation/accuracy": summary.overall.mean, **groups})

    def _log_figures(self, step: int, values: Mapping[str, float]) -> None:
        for each in self._figure_logs:
            each.log(step, values)

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

    def _keep_up_to(self, path: Path, step: int) -> None:
        """Remove the lines of later steps, and a last line that a kill cut short."""
        if path.exists():
            kept = [line for line in read_json_lines(path) if line["step"] <= step]
            self._run.seals.write(path, "".join(json.dumps(line) + "\n" for line in kept))

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._run.seals.append(path, json.dumps(line) + "\n")
