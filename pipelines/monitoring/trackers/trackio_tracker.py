"""Trackio, in a local database or a Hugging Face Space."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipelines.monitoring.trackers.tracker import TrackedRun
from rlad.config.monitoring.trackers import TrackioTracker


class Trackio:
    """Logs to the trackio run that is named like the rlad run."""

    def __init__(self, config: TrackioTracker, run: TrackedRun) -> None:
        os.environ["TRACKIO_DIR"] = str(run.folder / "trackio")  # read when the package is imported
        import trackio

        self._trackio = trackio
        trackio.init(
            project=config.project,
            name=run.run_id,
            space_id=config.space_id,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._trackio.finish()
