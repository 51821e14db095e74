"""Stand-in for a run: records steps with its trackers. Usage: tracked_run.py RUN TRACKING START_STEP END_STEP

A run that starts at step 0 waits for its end after its last step. A continued one closes its trackers.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from pipelines.monitoring.trackers.opening import open_trackers
from pipelines.monitoring.trackers.tracker import TrackedRun
from pipelines.run.directory import RunDirectory
from pipelines.run.telemetry import Telemetry
from rlad.config import load_run_config
from rlad.evaluation.accuracy import PromptResult, summarise

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
PATIENCE_S = 300.0


def main(folder: str, tracking: str, start_step: int, end_step: int) -> None:
    config, run = load_run_config(SMOKE, [f"tracking={tracking}"]), RunDirectory(folder)
    with run.hold(config, resume=start_step > 0):
        trackers = open_trackers(
            config.tracking,
            TrackedRun(
                run_id="stand-in-1a2b3c4d",
                config=config.model_dump(mode="json"),
                folder=run.tracking,
                tensorboard=run.tensorboard,
                start_step=start_step,
            ),
        )
        telemetry = Telemetry(run, start_step=start_step, figure_logs=[trackers])
        if start_step == 0:
            result = PromptResult(
                prompt_id="p", groups=("2",), rewards=(1.0, 0.0), response_tokens=(9, 9), num_truncated=0
            )
            telemetry.record_evaluation(0, summarise([result]), 1.0)
        for step in range(start_step + 1, end_step + 1):
            telemetry.record_step(step, {"reward/mean": step / 8 + start_step, "rollout/tokens_per_s": 100.0 * step})
        calls, deadline = end_step - start_step + (start_step == 0), time.monotonic() + PATIENCE_S
        while any(counts.delivered < calls for counts in trackers.counts.values()):
            assert time.monotonic() < deadline, trackers.counts
            time.sleep(0.05)
        print("delivered", flush=True)
        if start_step == 0:
            threading.Event().wait(PATIENCE_S)  # until it is killed
        trackers.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
