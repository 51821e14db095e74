"""Stopped roles: each role of a real run is stopped (SIGSTOP) in turn, and must be noticed and replaced.

python -m benchmarks.chaos.stopped_roles --json OUT

One smoke run has its rollout worker, engine, verifier, teacher, learner rank and broker stopped; if it ends, it is
continued. A scheduled run and a run with `--max-restarts`, as a job has it, have their drivers stopped. All must finish
with nothing lost and nothing trained on twice.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.smoke_run import ROLES, SMOKE, TIMEOUT_S, Ending, SmokeRun, has_ended, smoke_run, wait_for
from benchmarks.measure import JsonPath
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.heartbeat import read_heartbeat
from pipelines.schedules.adding import add_schedule, schedule_settings
from pipelines.schedules.execution import Ticker
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick

# Steps that are trained after each replacement: the first one may have been complete when the role was stopped.
_STEPS_AFTER = 2
SCHEDULED_DRIVER, SUPERVISED_DRIVER = "driver of a schedule", "driver of a job"


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


def stop_role(run: SmokeRun, role: str) -> Recovery:
    """Stop a process of a role, and wait until the run has recovered."""
    steps = run.steps()
    wait_for(lambda: run.steps() > steps and bool(run.processes(role)), f"a {role}")
    [found, *_], steps = run.processes(role), run.steps()
    began = time.monotonic()
    os.kill(found.pid, signal.SIGSTOP)
    wait_for(lambda: has_ended(found), f"the end of the stopped {role}")
    detected_s, resumed = time.monotonic() - began, run.resumed

    def has_recovered() -> bool:
        run.resume_if_ended()
        return run.steps() >= steps + _STEPS_AFTER

    wait_for(has_recovered, f"the recovery from the stopped {role}")
    return Recovery(
        role=role,
        detected_s=detected_s,
        recovered_s=time.monotonic() - began,
        is_resumed=run.resumed > resumed,
    )


def stop_scheduled_driver(folder: Path, settings: list[str]) -> tuple[Recovery, Ending]:
    """Stop the driver of a scheduled run, and wait until its ticker has killed it and finished the run."""
    store = ScheduleStore(f"sqlite:///{folder / 'schedules.sqlite'}")
    schedule = schedule_settings(
        "stopped",
        SMOKE,
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
        recovery = _stop_driver_of(run, steps, role=SCHEDULED_DRIVER)
        [ended] = ticking.result(TIMEOUT_S)
    store.close()
    return recovery, Ending.of("scheduled run", run, is_finished=ended.status == "finished")


def stop_supervised_driver(folder: Path, settings: list[str]) -> tuple[Recovery, Ending]:
    """Stop the driver of a run with `--max-restarts`, and wait until its supervisor has replaced it."""
    with smoke_run(folder / "supervised", [*settings, "--max-restarts=1"]) as run:
        wait_for(lambda: run.steps() > 0, "the first step of the supervised run")
        recovery = _stop_driver_of(run.directory, run.steps, role=SUPERVISED_DRIVER)
        return recovery, run.finish("supervised run")


def _stop_driver_of(run: RunDirectory, steps: Callable[[], int], *, role: str) -> Recovery:
    heartbeat, before = read_heartbeat(run), steps()
    assert heartbeat is not None
    driver, began = psutil.Process(heartbeat.process.pid), time.monotonic()
    os.kill(driver.pid, signal.SIGSTOP)
    wait_for(lambda: has_ended(driver), f"the end of the stopped {role}")
    detected_s = time.monotonic() - began
    wait_for(lambda: steps() > before, f"the recovery from the stopped {role}")
    return Recovery(role=role, detected_s=detected_s, recovered_s=time.monotonic() - began, is_resumed=True)


def main(
    heartbeat_s: Annotated[float, typer.Option(help="Heartbeat of the runs, seconds.")] = 1.0,
    roles: Annotated[str, typer.Option(help="Roles to stop, separated by commas; all by default.")] = "",
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the runs. Default: a temporary one.", show_default=False)
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Stop each role of a run in turn, and print when it was noticed and when the run had recovered."""
    chosen = [role.strip() for role in roles.split(",") if role.strip()] or [
        *ROLES,
        SCHEDULED_DRIVER,
        SUPERVISED_DRIVER,
    ]
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
            with smoke_run(folder / "run", [*settings, f"training.steps={steps}", "evaluation.every_steps=0"]) as run:
                for role in stopped:
                    recoveries.append(stop_role(run, role))
                    console.print(recoveries[-1])
                endings.append(run.finish("smoke run"))
        for role, stop in ((SCHEDULED_DRIVER, stop_scheduled_driver), (SUPERVISED_DRIVER, stop_supervised_driver)):
            if role in chosen:
                recovery, end = stop(folder, [*settings, "training.steps=3", "checkpoints.every_steps=1"])
                recoveries.append(recovery)
                endings.append(end)
    _show(console, recoveries, endings)
    if json_path is not None:
        found = {"recoveries": [asdict(each) for each in recoveries], "endings": [asdict(each) for each in endings]}
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    is_right = all(end.is_right for end in endings)
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
