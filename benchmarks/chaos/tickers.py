"""Three tickers on one schedule store, killed and frozen at random: every due time must run as exactly one tick.

python -m benchmarks.chaos.tickers

The tickers are processes that call `tick` in a loop, as the daemon does. A due time comes as soon as the tick of the
one before has ended. In a part of the rounds the ticker that works is killed (SIGKILL) or frozen (SIGSTOP) in the
middle of its tick; a frozen one wakes up after another has taken over. Leases are real and last a second. A ticker that
is frozen inside a transaction holds the SQLite file until it wakes up, which no other process can change.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.measure import JsonPath
from pipelines.run.status import STOPPED_EXIT_CODE
from pipelines.schedules.adding import add_schedule
from pipelines.schedules.execution import Ticker
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import Tick
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
from rlad.config import load_run_config
from rlad.config.schedule import ScheduleConfig
from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord
from rlad.errors import RladError, ScheduleError
from rlad.integrity.durable import write_atomically

_SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
_NAME, _MINUTE = "minutely", 60.0
_STORE = "schedules.sqlite"
_ROUND_TIMEOUT_S = 60.0
# Time for which a store is locked without a break when the holder of the lock is frozen. A transaction takes
# milliseconds.
_LOCKED_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of all rounds.

    Attributes:
        due_times: Number of due times.
        run_once: Number of due times with exactly one tick, which ran to its end.
        coalesced: Number of due times that another tick replaced. Must be 0.
        kills: Number of tickers that were killed.
        stops: Number of tickers that were frozen and woken again.
        locked: Number of these that were frozen inside a transaction. They were woken first, since they held the file.
        started_again: Number of runs that were started again after their ticker was lost.
        slowest_takeover_s: Longest time from a kill or stop to the end of the tick, in seconds.
        elapsed_s: Duration, in seconds.
    """

    due_times: int
    run_once: int
    coalesced: int
    kills: int
    stops: int
    locked: int
    started_again: int
    slowest_takeover_s: float
    elapsed_s: float


class _Runs:
    """Launcher of runs that last a moment and end as stopped runs do, without a student to register."""

    job = None

    def __init__(self, folder: Path) -> None:
        self._folder, self._ends_at = folder, 0.0

    def start(self, request: RunRequest) -> _Runs:
        with (self._folder / "started").open("a") as file:
            file.write(f"{Path(request.arguments[1]).stem} {os.getpid()}\n")
        self._ends_at = time.monotonic() + 0.05
        return self

    def adopt(self, request: RunRequest, job: str) -> _Runs:
        raise AssertionError("these runs end with their ticker")

    def wait(self, timeout_s: float) -> RunExit | None:
        time.sleep(0.01)
        is_over = time.monotonic() >= self._ends_at
        return RunExit(status=STOPPED_EXIT_CODE, reason="stopped: it is over") if is_over else None

    def is_stopped(self) -> bool:
        return False

    def stop(self, grace_s: float) -> None:
        self._ends_at = 0.0


def work(url: str, folder: Path) -> None:
    """Tick until killed, at the time that the file `now` holds."""

    def now() -> float:
        return float((folder / "now").read_text())

    store = ScheduleStore(url)
    while True:
        with suppress(RladError, SQLAlchemyError):  # as the daemon does
            tick(_NAME, Ticker(store=store, launcher=_Runs(folder), clock=now))
        time.sleep(0.02)


def _start_ticker(url: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.chaos.tickers", "--work", url, "--folder", str(folder)])


def _schedule(folder: Path) -> ScheduleConfig:
    records = [
        PromptRecord(id=f"e{index}", prompt=f"A:{index};", task="knights_knaves", answer="T", metadata={})
        for index in range(4)
    ]
    write_prompt_file(records, folder / "evaluation.jsonl")
    run = load_run_config(_SMOKE, ["student.path=start"]).model_dump(mode="json")
    run["evaluation"]["prompts"] = {"source": "file", "path": str(folder / "evaluation.jsonl")}
    return ScheduleConfig(
        name=_NAME,
        run=run,
        cron="* * * * *",
        working_dir=str(folder),
        directory=str(folder / "runs"),
        registry=str(folder / "registry"),
        model="kk",
        retries=10,
        retry_wait_s=0,
        lease_s=1,
    )


def _await_end(store: ScheduleStore, scheduled_at: float) -> None:
    """Wait until the tick of a due time has ended.

    Raises:
        TimeoutError: It has not ended in time.
    """
    deadline = time.monotonic() + _ROUND_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(tick.status != "running" for tick in _ticks_at(store, scheduled_at)):
            return
        time.sleep(0.01)
    raise TimeoutError(f"the time {scheduled_at:.0f} was not run within {_ROUND_TIMEOUT_S:g} s")


def _await_end_unless_locked(store: ScheduleStore, scheduled_at: float, folder: Path) -> bool:
    """Wait until the tick of a due time has ended. Returns False if the store is locked all the time instead.

    A ticker that was frozen inside a transaction holds the lock of the SQLite file, and no other one can work.

    Raises:
        TimeoutError: It has not ended in time.
    """
    deadline, free_at = time.monotonic() + _ROUND_TIMEOUT_S, time.monotonic()
    while time.monotonic() < deadline:
        if _is_locked(folder):
            if time.monotonic() - free_at > _LOCKED_S:
                return False
        else:
            free_at = time.monotonic()
            if any(tick.status != "running" for tick in _ticks_at(store, scheduled_at)):
                return True
        time.sleep(0.01)
    raise TimeoutError(f"the time {scheduled_at:.0f} was not run within {_ROUND_TIMEOUT_S:g} s")


def _is_locked(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / _STORE, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.rollback()
    return False


def _ticks_at(store: ScheduleStore, scheduled_at: float) -> list[Tick]:
    found = store.history(_NAME)
    return [tick for tick in found if tick.scheduled_at == scheduled_at and tick.status != "refused"]


def _await_start(store: ScheduleStore, scheduled_at: float, started: Path, known: int) -> int:
    """Wait for the run of a due time to start, and return the process id of its ticker.

    Raises:
        TimeoutError: It has not started in time.
        ScheduleError: Its tick failed before.
    """
    deadline = time.monotonic() + _ROUND_TIMEOUT_S
    while time.monotonic() < deadline:
        lines = started.read_text().splitlines()
        if len(lines) > known:
            return int(lines[-1].split()[1])
        if failed := [tick.reason for tick in _ticks_at(store, scheduled_at) if tick.status == "failed"]:
            raise ScheduleError(f"the tick of {scheduled_at:.0f} failed before its run started: {failed[0]}")
        time.sleep(0.002)
    raise TimeoutError("no run was started")


def measure(due_times: int, share: float, folder: Path) -> Result:
    """Run all due times with three tickers, and count the ticks of each."""
    url, chance, began = f"sqlite:///{folder / _STORE}", random.Random(7), time.monotonic()
    store = ScheduleStore(url)
    started = folder / "started"
    started.touch()
    add_schedule(store, _schedule(folder))
    start = (store.schedule(_NAME).active_since // _MINUTE + 1) * _MINUTE
    write_atomically(folder / "now", str(start - 1))
    tickers = {process.pid: process for process in (_start_ticker(url, folder) for _ in range(3))}
    kills = stops = locked = 0
    takeovers = [0.0]
    try:
        for index in range(due_times):
            known = len(started.read_text().splitlines())
            due_at = start + index * _MINUTE
            write_atomically(folder / "now", str(due_at))
            is_disturbed = chance.random() < share
            if is_disturbed:
                victim, disturbed_at = tickers[_await_start(store, due_at, started, known)], time.monotonic()
                time.sleep(chance.uniform(0, 0.06))
                if chance.random() < 0.5:
                    kills += 1
                    victim.kill()
                    victim.wait()
                    del tickers[victim.pid]
                    fresh = _start_ticker(url, folder)
                    tickers[fresh.pid] = fresh
                    _await_end(store, due_at)
                else:
                    stops += 1
                    victim.send_signal(signal.SIGSTOP)
                    try:
                        locked += not _await_end_unless_locked(store, due_at, folder)
                    finally:
                        victim.send_signal(signal.SIGCONT)
                takeovers.append(time.monotonic() - disturbed_at)
            _await_end(store, due_at)
    finally:
        for process in tickers.values():
            process.kill()
            process.wait()
    ticks = [tick for tick in store.history(_NAME) if tick.status != "refused"]
    store.close()
    times = Counter(tick.scheduled_at for tick in ticks if tick.status == "stopped")
    return Result(
        due_times=due_times,
        run_once=sum(times[start + index * _MINUTE] == 1 for index in range(due_times)),
        coalesced=sum(tick.coalesced for tick in ticks),
        kills=kills,
        stops=stops,
        locked=locked,
        started_again=len(started.read_text().splitlines()) - len(ticks),
        slowest_takeover_s=round(max(takeovers), 2),
        elapsed_s=round(time.monotonic() - began, 1),
    )


def main(
    due_times: Annotated[int, typer.Option(help="Number of due times.", min=1)] = 200,
    share: Annotated[float, typer.Option(help="Share of the rounds with a kill or a stop.", min=0, max=1)] = 0.25,
    json_path: JsonPath = None,
    work_on: Annotated[str | None, typer.Option("--work", hidden=True)] = None,
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Fire due times with three tickers that are killed and frozen, and exit with 1 unless each ran exactly once."""
    if work_on is not None:
        work(work_on, folder)
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(due_times, share, Path(temporary))
    Console().print(asdict(result))
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    if result.run_once != result.due_times or result.coalesced:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
