"""A real run of the smoke configuration whose processes can be found, and which is continued if it ends early."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.ledger import Ledger

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke_cpu.yaml"
TIMEOUT_S = 420.0
# A look goes through all processes of the machine.
_POLL_S = 0.2
# Roles with a pattern that their process titles match.
_ENGINE = "engine of a rollout worker"
ROLES: Mapping[str, str] = {
    "rollout worker": "RolloutWorker",
    _ENGINE: "EngineCore|spawn_main",  # It does not always get its title. Other roles have spawned children too.
    "verifier": "VerifierWorker",
    "teacher replica": "ServeReplica",
    "learner rank": "TrainWorker",
    "broker": "ExperienceBroker",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """End of a run.

    Attributes:
        run: Name of the run.
        is_finished: Whether it finished.
        lost: Groups that were lost.
        twice: Groups that were trained on twice.
    """

    run: str
    is_finished: bool
    lost: int
    twice: int

    @property
    def is_right(self) -> bool:
        """Whether the run finished with every group trained on exactly once."""
        return self.is_finished and not self.lost and not self.twice

    @classmethod
    def of(cls, name: str, run: RunDirectory, *, is_finished: bool) -> Ending:
        """Count the ledger of a run that has ended."""
        with closing(Ledger(run.ledger, read_only=True)) as ledger:
            counts = ledger.counts()
        return cls(run=name, is_finished=is_finished, lost=counts.lost, twice=counts.duplicated)


class SmokeRun:
    """A smoke run in a process of its own, which is started again with `--resume` if it ends early.

    Attributes:
        directory: Directory of the run.
        resumed: Number of times that it was continued.
    """

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        """
        Args:
            folder: Folder of the run, which is created.
            settings: Settings as `key=value`.
        """
        self.directory, self._log = RunDirectory(folder), folder.with_suffix(".log")
        self._settings = settings
        self.resumed = 0
        self._process = self._start()

    def steps(self) -> int:
        """Return the number of steps that were recorded."""
        return len({line["step"] for line in read_json_lines(self.directory.metrics)})

    def has_ended(self) -> bool:
        """Return whether the process of the run has ended."""
        return self._process.poll() is not None

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the live processes of a role, oldest first."""
        found = []
        parents = [each.pid for each in self.processes("rollout worker")] if role == _ENGINE else [self._process.pid]
        for parent in parents:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(parent).children(recursive=True):
                    with suppress(psutil.Error):
                        if re.search(ROLES[role], " ".join(process.cmdline())) and not has_ended(process):
                            found.append(process)
        return found

    def resume_if_ended(self) -> None:
        """Continue the run if it has failed."""
        if self._process.poll() not in (None, 0):
            self._process, self.resumed = self._start(), self.resumed + 1

    def finish(self, name: str) -> Ending:
        """Wait for the end of the run.

        Args:
            name: Name of the run in the result.
        """
        is_finished = self._process.wait(TIMEOUT_S) == 0
        return Ending.of(name, self.directory, is_finished=is_finished)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the run's output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Kill the run and all its processes."""
        if self._process.poll() is None:
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait(60)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipelines", "run", str(SMOKE), "--run-dir", str(self.directory.path)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--resume", *self._settings],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextmanager
def smoke_run(folder: Path, settings: Sequence[str]) -> Iterator[SmokeRun]:
    """Run the smoke configuration for the duration of the block. The arguments are those of `SmokeRun`."""
    run = SmokeRun(folder, settings)
    try:
        yield run
    finally:
        run.close()


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(_POLL_S)


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also if its parent has not waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
