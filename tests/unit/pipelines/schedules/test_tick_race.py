"""Tickers that fire together: processes on one store run every due time exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.schedules.records import tick_run_id
from pipelines.schedules.store import ScheduleStore

from .conftest import NIGHT, Site

TICKERS = 3
ROUNDS = 30
STORE_ROUNDS = 150

# Fires at each minute together with the other processes: a process waits until all have ended the round before.
COMMON = """
import sys, time
from pathlib import Path
url, folder, number, tickers, rounds, start = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:])

def wait_for_round(index):
    (folder / f"round-{index}-{number:.0f}").touch()
    while len(list(folder.glob(f"round-{index}-*"))) < tickers:
        time.sleep(0.0005)
"""

TICKER = """
from pipelines.schedules.execution import Ticker
from pipelines.schedules.launcher import RunExit
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick

class Runs:
    job = None
    def start(self, request):
        with (folder / "started").open("a") as file:
            file.write(Path(request.arguments[1]).stem + chr(10))
        return self
    def wait(self, timeout_s):
        return RunExit(status=1, reason="no such model")
    def stop(self, grace_s):
        pass

now = start
store = ScheduleStore(url, clock=lambda: now)
for index in range(int(rounds)):
    wait_for_round(index)
    now = start + 60 * index
    tick("minutely", Ticker(store=store, launcher=Runs(), clock=lambda: now))
"""

ACQUIRER = """
from dataclasses import replace
from pipelines.schedules.records import NewTick
from pipelines.schedules.store import ScheduleStore
from rlad.errors import LeaseHeldError

store = ScheduleStore(url)
for index in range(int(rounds)):
    scheduled_at = start + 60 * index
    new = NewTick(kind="cron", scheduled_at=scheduled_at, run_id=f"run-{scheduled_at:.0f}", status="running")
    def find_due(schedule, history):
        return new if (history.last_opened or 0.0) < scheduled_at else None
    wait_for_round(index)
    try:
        lease, opened = store.acquire_and_open("minutely", f"process {number:.0f}", 60, find_due)
        if opened is not None:
            store.save(lease, replace(opened, status="finished"))
        store.release(lease)
    except LeaseHeldError as error:
        store.record_refused("minutely", find_due, reason=str(error))
"""


def run_together(script: str, url: str, folder: Path, rounds: int) -> None:
    folder.mkdir()
    command = [sys.executable, "-c", COMMON + script, url, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    tickers = [
        subprocess.Popen(
            [*command, *map(str, (number, TICKERS, rounds, NIGHT))], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in range(TICKERS)
    ]
    try:
        errors = [ticker.communicate(timeout=240)[1] for ticker in tickers]
    finally:
        for ticker in tickers:
            ticker.kill()
    assert [ticker.returncode for ticker in tickers] == [0] * TICKERS, errors


def test_due_times_run_exactly_once_if_several_processes_fire_together(site: Site, tmp_path: Path) -> None:
    site.add(name="minutely", cron="* * * * *", directory=str(tmp_path / "minutely"), model="other", retries=0)
    run_together(TICKER, f"sqlite:///{tmp_path / 'schedules.sqlite'}", tmp_path / "race", ROUNDS)
    started = Counter((tmp_path / "race" / "started").read_text().split())
    expected = [tick_run_id("minutely", NIGHT + 60 * index, kind="cron") for index in range(ROUNDS)]
    assert started == Counter(expected)
    assert [tick.run_id for tick in site.store.history("minutely")] == expected  # and no refused record


@pytest.mark.parametrize("store_kind", ["sqlite", "postgres"])
def test_due_tick_is_opened_together_with_the_lease(
    site: Site, store_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'race.sqlite'}"
    if store_kind == "postgres":
        url = request.getfixturevalue("postgres")
    store = ScheduleStore(url)
    store.add(site.settings(name="minutely"), evaluation_fingerprint="f")
    try:
        run_together(ACQUIRER, url, tmp_path / "race", STORE_ROUNDS)
        history = store.history("minutely")
        assert [tick.scheduled_at for tick in history] == [NIGHT + 60 * index for index in range(STORE_ROUNDS)]
        assert {tick.status for tick in history} == {"finished"}
    finally:
        store.remove("minutely")
        store.close()
