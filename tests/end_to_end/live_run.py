"""Waiting for a live run: for as long as it makes progress, not for a fixed time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.run.directory import RunDirectory, read_json_lines

STALL_TIMEOUT_S = 240.0


class LiveRun:
    """Process of a run, with the files that show its progress.

    A run makes progress when its log, its metrics, its evaluations or one of `files` grows. A machine under load slows
    every wait down, but the run still writes to these files.
    """

    def __init__(
        self,
        process: subprocess.Popen[Any],
        directory: RunDirectory,
        *files: Path,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        """
        Args:
            process: Process of the run.
            directory: Directory of the run.
            files: Further files whose growth is progress, such as the run's standard error.
            stall_timeout_s: Time without progress after which a wait fails, seconds.
        """
        self.process = process
        self._directory = directory
        self._files = (directory.log, directory.metrics, directory.evaluations, *files)
        self._stall_timeout_s = stall_timeout_s

    def steps(self) -> int:
        """Return the number of finished steps."""
        return len(read_json_lines(self._directory.metrics))

    def wait_for_steps(self, steps: int) -> None:
        """Wait until this number of steps is finished."""
        self.wait_for(lambda: self.steps() >= steps, f"step {steps}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition. Fails if the run ends first or stalls."""

        def is_met() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"the run ended before {what}"
            return False

        self._wait(is_met, what)

    def wait_for_end(self) -> int:
        """Wait until the run ends, and return its exit status. Fails if the run stalls."""
        self._wait(lambda: self.process.poll() is not None, "the end of the run")
        return self.process.wait()

    def _wait(self, is_met: Callable[[], bool], what: str) -> None:
        sizes, advanced_at = self._sizes(), time.monotonic()
        while not is_met():
            if (current := self._sizes()) != sizes:
                sizes, advanced_at = current, time.monotonic()
            stalled_s = time.monotonic() - advanced_at
            assert stalled_s < self._stall_timeout_s, (
                f"no progress for {stalled_s:.0f} s while waiting for {what}; step {self.steps()} is finished"
            )
            time.sleep(0.2)

    def _sizes(self) -> list[int]:
        return [path.stat().st_size if path.exists() else 0 for path in self._files]
