"""Metrics of a run for Prometheus, through the metrics endpoint that Ray has on every node."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

from ray.util.metrics import Gauge

from actors.controller import RunState
from pipelines.monitoring.trackers.delivery import DeliveryCounts
from rlad.monitoring.table import metric, metric_of_figure

_STATES = ("target", "ready", "starting", "draining")
_GONE = -1  # the series stays: Ray's metrics cannot be removed
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")


class RunMetrics:
    """Sets the metrics of one run. Its methods cost microseconds: Ray sends the values in the background."""

    def __init__(self, run_id: str, *, total_steps: int, trained_steps: int) -> None:
        """
        Args:
            run_id: Value of the label `run`.
            total_steps: Steps of the whole run.
            trained_steps: Number of trained steps from which the run starts.
        """
        self._run_id = run_id
        self._gauges: dict[str, Gauge] = {}
        self._workers: set[str] = set()
        self._set("rlad_run_total_steps", total_steps)
        self._record_step(trained_steps)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Set the figures of a step. A figure that the table does not have, such as one of an objective of the user,
        becomes a metric with the name of the figure.

        Args:
            step: Number of trained steps.
            values: Figures named `area/name_unit`.
        """
        for figure, value in values.items():
            if not math.isfinite(value):
                continue
            found = metric_of_figure(figure)
            if found is None:
                name = f"rlad_{_NOT_IN_NAMES.sub('_', figure)}"
                self._gauge(name, f"Figure {figure}.", ("run",)).set(value, {"run": self._run_id})
            else:
                self._set(found[0].name, value, **dict(found[1]))
        self._record_step(step)

    def record_state(self, state: RunState) -> None:
        """Set the sizes of pools and the health of processes. See the table for the values."""
        for pool, sizes in state.pools.items():
            for name in _STATES:
                self._set("rlad_pool_workers", getattr(sizes, name), pool=pool, state=name)
        listed = {actor.name: actor for actor in state.actors}
        for worker in self._workers - listed.keys():
            self._set("rlad_worker_up", _GONE, worker=worker)
        for worker, actor in listed.items():
            self._set("rlad_worker_up", actor.state == "alive", worker=worker)
            # By pool: a worker that replaces a lost one has a name of its own, and its series has no former value.
            self._set("rlad_pool_lost_processes", actor.restarts, pool=actor.role)
        self._workers |= listed.keys()

    def record_losses(self, trackers: Mapping[str, DeliveryCounts], *, left_out_samples: int) -> None:
        """Set the numbers of figures and samples that were lost."""
        for tracker, counts in trackers.items():
            self._set("rlad_tracker_lost_calls", counts.dropped, tracker=tracker, reason="dropped")
            self._set("rlad_tracker_lost_calls", counts.failed, tracker=tracker, reason="failed")
        self._set("rlad_samples_left_out_groups", left_out_samples)

    def _record_step(self, step: int) -> None:
        self._set("rlad_run_trained_steps", step)
        self._set("rlad_run_last_step_timestamp_seconds", time.time())

    def _set(self, name: str, value: float, **labels: str) -> None:
        found = metric(name)
        self._gauge(name, found.description, found.labels).set(float(value), {"run": self._run_id, **labels})

    def _gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=description, tag_keys=labels)
        return self._gauges[name]
