"""The trackers of a run: which libraries they need, and how they are opened and closed together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from pipelines.monitoring.trackers.child_process import ChildTracker
from pipelines.monitoring.trackers.delivery import DeliveryCounts, TrackerDelivery
from pipelines.monitoring.trackers.tracker import TrackedRun, Tracker
from rlad.config.monitoring.trackers import TensorBoardTracker, TrackerConfig
from rlad.errors import PlanError

# Module that each tracker imports, and the package that provides it.
_PACKAGES = {"wandb": ("wandb", "wandb"), "mlflow": ("mlflow", "mlflow-skinny"), "trackio": ("trackio", "trackio")}
# Time that a run waits at its end for its trackers.
_CLOSE_TIMEOUT_S = 60.0


def missing_libraries(trackers: Sequence[TrackerConfig]) -> list[str]:
    """Return a sentence for each tracker whose library is not installed on this machine."""
    wanted = [(tracker.name, *_PACKAGES[tracker.name]) for tracker in trackers if tracker.name in _PACKAGES]
    return [
        f"tracking lists {name}, but the package {package} is not installed on this machine: `pip install {package}`, "
        f"or remove {name} from tracking"
        for name, module, package in wanted
        if find_spec(module) is None
    ]


def require_trackers(trackers: Sequence[TrackerConfig]) -> None:
    """Refuse trackers whose library is not installed.

    Raises:
        PlanError: A library is missing.
    """
    if missing := missing_libraries(trackers):
        raise PlanError("\n".join(missing))


class Trackers:
    """All trackers of a run. No method raises an error of a tracker."""

    def __init__(self, deliveries: Sequence[TrackerDelivery]) -> None:
        self._deliveries = deliveries

    @property
    def counts(self) -> dict[str, DeliveryCounts]:
        """Counts of each tracker by name."""
        return {delivery.name: delivery.counts for delivery in self._deliveries}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of a step at all trackers, without waiting.

        Args:
            step: Number of trained steps, so the first is 1.
            values: Figures named `area/name_unit`.
        """
        for delivery in self._deliveries:
            delivery.log(step, values)

    def close(self) -> None:
        """Wait for all trackers within one deadline, and log what was not delivered."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for delivery in self._deliveries:
            delivery.begin_close()
        for delivery in self._deliveries:
            delivery.finish_close(deadline)


def open_trackers(trackers: Sequence[TrackerConfig], run: TrackedRun) -> Trackers:
    """Open the trackers of a run. Connections are made in the background."""
    return Trackers([TrackerDelivery(config.name, _tracker_of(config, run)) for config in trackers])


def _tracker_of(config: TrackerConfig, run: TrackedRun) -> Tracker:
    if isinstance(config, TensorBoardTracker):  # part of every installation, and the driver has loaded torch already
        from pipelines.monitoring.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    return ChildTracker(config, run)
