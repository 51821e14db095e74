"""Weights & Biases, online or in files for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipelines.monitoring.trackers.tracker import STEP, TrackedRun
from rlad.config.monitoring.trackers import WandbTracker


class Wandb:
    """Logs to a run whose id is that of the rlad run, so that a continued run continues it.

    The step is a figure of its own, the axis of all others: W&B's own step only grows, and a continued run logs steps
    again.
    """

    def __init__(self, config: WandbTracker, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            id=run.run_id,
            name=run.run_id,
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
            # Neither code nor console output leaves the machine.
            settings=wandb.Settings(
                symlink=False, console="off", silent=True, disable_git=True, disable_code=True, save_code=False
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**values, STEP: step})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
