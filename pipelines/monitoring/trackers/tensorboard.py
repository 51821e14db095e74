"""TensorBoard event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard.writer import SummaryWriter

from pipelines.monitoring.trackers.tracker import TrackedRun


class TensorBoard:
    """Writes event files. A continued run purges the steps that it trains again."""

    def __init__(self, run: TrackedRun) -> None:
        self._board = SummaryWriter(str(run.tensorboard), purge_step=run.start_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self._board.close()
