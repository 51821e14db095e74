"""The protocol of experiment trackers, and what they know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

STEP = "trained_steps"
"""Name of the step axis where a tracker needs one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        run_id: Id of the run, the same when it is continued.
        config: Resolved configuration, without secrets.
        folder: Folder for local files of trackers.
        tensorboard: Folder of TensorBoard's event files.
        start_step: Number of trained steps from which the run starts. Figures of later steps are logged again.
    """

    run_id: str
    config: Mapping[str, Any]
    folder: Path
    tensorboard: Path
    start_step: int


class Tracker(Protocol):
    """Sends the figures of a run to one place. May block and raise any error: `TrackerDelivery` isolates the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of a step. If a step is logged again, the last value counts.

        Args:
            step: Number of trained steps, so the first is 1. Evaluations of the student at the start have 0.
            values: Figures named `area/name_unit`.
        """

    def close(self) -> None:
        """Finish the run at the tracker."""
