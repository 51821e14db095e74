"""Waiting for a live run: for as long as it makes progress, not for a fixed time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.run.directory import RunDirectory, read_json_lines

STALL_TIMEOUT_S = 240.0
# A look at the files of a run costs milliseconds, and a run that starts needs both cores.
_POLL_S = 0.25
ROOT = Path(__file__).parents[2]


def finish_run(config: Path, *settings: str, directory: RunDirectory) -> None:
    """Run a configuration to its end with `rlad run`. Fails if the run fails or stalls; its output is then shown."""
    log = directory.path.with_suffix(".log")
    command = [sys.executable, "-m", "pipelines", "run", config, *settings, "--run-dir", directory.path]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        status = LiveRun(process, directory, log).wait_for_end()
    finally:
        process.kill()
        process.wait()
        print(log.read_text()[-8000:])
    assert status == 0


class LiveRun:
    """Process of a run, with the files that show its progress.

    A run makes progress when a file appears, grows or is removed in its directory, or one of `files` grows. On a
    machine under load every wait takes longer, but the run still writes files: at start-up the ledger, the first
    checkpoint folder and the cluster's address, and then metrics and the ledger with each step.
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
        self._files = files
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
        state, advanced_at = self._state(), time.monotonic()
        while not is_met():
            if (current := self._state()) != state:
                state, advanced_at = current, time.monotonic()
            stalled_s = time.monotonic() - advanced_at
            assert stalled_s < self._stall_timeout_s, (
                f"no progress for {stalled_s:.0f} s while waiting for {what}; step {self.steps()} is finished"
            )
            time.sleep(_POLL_S)

    def _state(self) -> dict[Path, int]:
        """Return the size of each file and folder. SQLite's shared memory is left out, because readers write to it."""
        sizes: dict[Path, int] = {}
        paths = list(self._files)
        for folder, _, names in os.walk(self._directory.path):  # leaves out a folder that is removed meanwhile
            paths += [Path(folder), *(Path(folder, name) for name in names)]
        for path in paths:
            if not path.name.endswith("-shm"):
                with suppress(FileNotFoundError):  # removed meanwhile
                    sizes[path] = path.stat().st_size
        return sizes
