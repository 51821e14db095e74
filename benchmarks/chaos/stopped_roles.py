"""Stopped roles: each role of a real run is stopped (SIGSTOP) in turn, and must be noticed and replaced.

python -m benchmarks.chaos.stopped_roles --json OUT

One smoke run has its rollout worker, engine, verifier, teacher, learner rank and broker stopped; if it ends, it is
continued. A scheduled run has its driver stopped. Both must finish with nothing lost and nothing trained on twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import JsonPath
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.heartbeat import read_heartbeat
from pipelines.schedules.adding import add_schedule, schedule_settings
from pipelines.schedules.execution import Ticker
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
from rlad.ledger import Ledger

_ROOT = Path(__file__).parents[2]
_SMOKE = _ROOT / "configs" / "smoke_cpu.yaml"
# Roles with a part of their process titles, in the order in which they are stopped.
ROLES = {
    "rollout worker": "RolloutWorker",
    "engine of a rollout worker": "EngineCore",
    "verifier": "VerifierWorker",
    "teacher replica": "ServeReplica",
    "learner rank": "TrainWorker",
    "broker": "ExperienceBroker",
}
# Steps that are trained after each replacement: the first one may have been complete when the role was stopped.
_STEPS_AFTER = 2
_TIMEOUT_S = 420.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Recovery from one stop.

    Attributes:
        role: The stopped role.
        detected_s: Seconds until the stopped process was killed.
        recovered_s: Seconds until two further steps were trained.
        is_resumed: Whether the run ended and was continued.
    """

    role: str
    detected_s: float
    recovered_s: float
    is_resumed: bool


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


class SmokeRun:
    """A smoke run in a process of its own, which is started again with `--resume` if it ends early."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.directory, self._log = RunDirectory(folder / "run"), folder / "run.log"
        self._settings = settings
        self._process = self._start()

    def stop_role(self, role: str, title: str) -> Recovery:
        """Stop a process of a role, and wait until the run has recovered."""
        steps = self._steps()
        wait_for(lambda: self._steps() > steps and self._find(title) is not None, f"a {role}")
        found, steps = self._find(title), self._steps()
        assert found is not None
        began = time.monotonic()
        os.kill(found.pid, signal.SIGSTOP)
        wait_for(lambda: has_ended(found), f"the end of the stopped {role}")
        detected_s, is_resumed = time.monotonic() - began, False

        def has_recovered() -> bool:
            nonlocal is_resumed
            if self._process.poll() not in (None, 0):
                self._process, is_resumed = self._start(), True
            return self._steps() >= steps + _STEPS_AFTER

        wait_for(has_recovered, f"the recovery from the stopped {role}")
        recovered_s = time.monotonic() - began
        return Recovery(role=role, detected_s=detected_s, recovered_s=recovered_s, is_resumed=is_resumed)

    def finish(self) -> Ending:
        """Wait for the end of the run."""
        is_finished = self._process.wait(_TIMEOUT_S) == 0
        return ending("smoke run", self.directory, is_finished=is_finished)

    def close(self) -> None:
        """Kill the run and all its processes."""
        if self._process.poll() is None:
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for process in family:
                with_no_error(process.kill)
            self._process.wait(60)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipelines", "run", str(_SMOKE), "--run-dir", str(self.directory.path)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--resume", *self._settings], cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def _steps(self) -> int:
        return len({line["step"] for line in read_json_lines(self.directory.metrics)})

    def _find(self, title: str) -> psutil.Process | None:
        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        for process in family:
            try:
                if title in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None


def stop_driver(folder: Path, settings: list[str]) -> tuple[Recovery, Ending]:
    """Stop the driver of a scheduled run, and wait until its ticker has killed it and finished the run."""
    store = ScheduleStore(f"sqlite:///{folder / 'schedules.sqlite'}")
    schedule = schedule_settings(
        "stopped",
        _SMOKE,
        settings,
        directory=folder / "stopped",
        registry=str(folder / "registry"),
        cron="0 2 * * *",
        model="student",
        retry_wait_s=0,
    )
    add_schedule(store, schedule)
    with ThreadPoolExecutor(1) as threads:
        ticking = threads.submit(tick, "stopped", Ticker(store=store), kind="manual")

        def found() -> RunDirectory | None:
            runs = sorted((folder / "stopped" / "runs").glob("*"))
            return RunDirectory(runs[0]) if runs else None

        def steps() -> int:
            run = found()
            return len({line["step"] for line in read_json_lines(run.metrics)}) if run is not None else 0

        wait_for(lambda: steps() > 0, "the first step of the scheduled run")
        run = found()
        assert run is not None
        heartbeat, before = read_heartbeat(run), steps()
        assert heartbeat is not None
        driver, began = psutil.Process(heartbeat.process.pid), time.monotonic()
        os.kill(driver.pid, signal.SIGSTOP)
        wait_for(lambda: has_ended(driver), "the end of the stopped driver")
        detected_s = time.monotonic() - began
        wait_for(lambda: steps() > before, "the recovery from the stopped driver")
        recovered_s = time.monotonic() - began
        [ended] = ticking.result(_TIMEOUT_S)
    store.close()
    recovery = Recovery(role="driver", detected_s=detected_s, recovered_s=recovered_s, is_resumed=True)
    return recovery, ending("scheduled run", run, is_finished=ended.status == "finished")


def ending(name: str, run: RunDirectory, *, is_finished: bool) -> Ending:
    """Count the ledger of a run that has ended."""
    ledger = Ledger(run.ledger, read_only=True)
    counts = ledger.counts().as_dict()
    ledger.close()
    return Ending(run=name, is_finished=is_finished, lost=counts["lost"], twice=counts["duplicated"])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not hold in time.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_TIMEOUT_S:g} s for {what}")
        time.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also if its parent has not waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_no_error(call: Callable[[], object]) -> None:
    """Call a function on a process that may have ended."""
    try:
        call()
    except psutil.NoSuchProcess:
        return


@contextmanager
def smoke_run(folder: Path, settings: list[str]) -> Iterator[SmokeRun]:
    """Run the smoke configuration for the duration of the block."""
    run = SmokeRun(folder, settings)
    try:
        yield run
    finally:
        run.close()


def main(
    heartbeat_s: Annotated[float, typer.Option(help="Heartbeat of the runs, seconds.")] = 1.0,
    roles: Annotated[str, typer.Option(help="Roles to stop, separated by commas; all by default.")] = "",
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the runs. Default: a temporary one.", show_default=False)
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Stop each role of a run in turn, and print when it was noticed and when the run had recovered."""
    chosen = [role.strip() for role in roles.split(",") if role.strip()] or [*ROLES, "driver"]
    settings = [f"failures.heartbeat_s={heartbeat_s:g}"]
    recoveries: list[Recovery] = []
    endings: list[Ending] = []
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stopped = [role for role in ROLES if role in chosen]
        if stopped:
            steps = (_STEPS_AFTER + 2) * len(stopped) + 2
            with smoke_run(folder, [*settings, f"training.steps={steps}", "evaluation.every_steps=0"]) as run:
                for role in stopped:
                    recoveries.append(run.stop_role(role, ROLES[role]))
                    console.print(recoveries[-1])
                endings.append(run.finish())
        if "driver" in chosen:
            recovery, end = stop_driver(folder, [*settings, "training.steps=3", "checkpoints.every_steps=1"])
            recoveries.append(recovery)
            endings.append(end)
    _show(console, recoveries, endings)
    if json_path is not None:
        found = {"recoveries": [asdict(each) for each in recoveries], "endings": [asdict(each) for each in endings]}
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    is_right = all(end.is_finished and not end.lost and not end.twice for end in endings)
    raise typer.Exit(0 if is_right else 1)


def _show(console: Console, recoveries: list[Recovery], endings: list[Ending]) -> None:
    table = Table("role", "detected after", "recovered after", "run")
    for each in recoveries:
        how = "ended, resumed" if each.is_resumed else "continues"
        table.add_row(each.role, f"{each.detected_s:.1f} s", f"{each.recovered_s:.1f} s", how)
    console.print(table)
    for end in endings:
        console.print(f"{end.run}: {'finished' if end.is_finished else 'FAILED'}, lost {end.lost}, twice {end.twice}")


if __name__ == "__main__":
    typer.run(main)
