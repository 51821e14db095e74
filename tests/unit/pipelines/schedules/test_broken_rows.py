"""Invalid rows of the schedule store: their schedule is reported, and other schedules tick."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.schedules.daemon import ScheduleDaemon
from pipelines.schedules.execution import Ticker
from pipelines.schedules.store import ScheduleStore
from rlad.errors import ScheduleError

from .conftest import NIGHT, Site

# Statements that make the row of the schedule `broken` invalid, and the problem that is reported.
DAMAGES = [
    ("UPDATE rlad_schedules SET config = '{' WHERE name = 'broken'", "Expecting property name"),
    ("UPDATE rlad_schedules SET config = '[]' WHERE name = 'broken'", "config"),
    ("UPDATE rlad_schedules SET config = replace(config, '0 2 * * *', '0 2 * *') WHERE name = 'broken'", "five cron"),
    ("UPDATE rlad_schedules SET config = replace(config, 'Etc/UTC', 'Etc/XYZ') WHERE name = 'broken'", "time zone"),
    ("UPDATE rlad_schedules SET config = replace(config, 'margin', 'margim') WHERE name = 'broken'", "margim"),
    ("UPDATE rlad_schedules SET config = replace(config, '\"broken\"', '\"other\"') WHERE name = 'broken'", "other"),
    ("UPDATE rlad_schedules SET is_paused = 'perhaps' WHERE name = 'broken'", "is_paused"),
    ("UPDATE rlad_schedules SET active_since = 'yesterday' WHERE name = 'broken'", "active_since"),
    ("UPDATE rlad_schedules SET lease_expires_at = 'tomorrow' WHERE name = 'broken'", "lease_expires_at"),
    ("UPDATE rlad_schedules SET config = CAST(x'7bff7d' AS TEXT) WHERE name = 'broken'", "Expecting property name"),
]
TICK_DAMAGES = [
    "UPDATE rlad_ticks SET record = '{}' WHERE schedule = 'broken'",
    "UPDATE rlad_ticks SET record = 'x' WHERE schedule = 'broken'",
    "UPDATE rlad_ticks SET record = CAST(x'7bff7d' AS TEXT) WHERE schedule = 'broken'",
    "UPDATE rlad_ticks SET record = replace(record, 'running', 'failed') WHERE schedule = 'broken'",
]


def execute(site: Site, statement: str) -> None:
    engine = sa.create_engine(f"sqlite:///{site.folder / 'schedules.sqlite'}")
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount
    engine.dispose()


@pytest.fixture
def two(site: Site) -> Site:
    """The schedules `broken` and `nightly`, both due."""
    site.add(name="broken", directory=str(site.folder / "broken"), model="other")
    site.clock.now = NIGHT
    return site


@pytest.fixture
def rlad(site: Site, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("RLAD_SCHEDULES", f"sqlite:///{site.folder / 'schedules.sqlite'}")
    return CliRunner()


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_invalid_schedule_row_is_reported_and_other_schedules_tick(
    two: Site, rlad: CliRunner, damage: str, problem: str
) -> None:
    execute(two, damage)
    (row,) = two.store.broken_rows()
    assert (row.schedule, row.table, row.key) == ("broken", "rlad_schedules", "name = 'broken'")
    assert problem in row.problem
    assert "rlad schedule remove broken" in row.remedy
    with pytest.raises(ScheduleError, match="schedule broken is broken: invalid row in rlad_schedules"):
        two.tick("broken")
    assert two.tick_at(NIGHT).event == "promoted"
    listed = rlad.invoke(app, ["schedule", "list"])
    assert listed.exit_code == 0, listed.output
    assert row.message in listed.output
    assert "nightly" in listed.output
    states = {
        found["name"]: found["state"] for found in json.loads(rlad.invoke(app, ["schedule", "list", "--json"]).output)
    }
    assert states == {"nightly": "waiting", "broken": "broken"}
    assert rlad.invoke(app, ["schedule", "remove", "broken"]).exit_code == 0
    assert two.store.broken_rows() == []


def test_broken_schedule_is_repaired_with_replace(two: Site) -> None:
    execute(two, DAMAGES[0][0])
    two.store.add(two.settings(name="broken"), evaluation_fingerprint="f", replace=True)
    assert two.store.broken_rows() == []
    assert two.store.schedule("broken").config == two.settings(name="broken")


@pytest.mark.parametrize("damage", TICK_DAMAGES)
def test_invalid_row_of_an_unfinished_tick_stops_only_its_schedule(two: Site, rlad: CliRunner, damage: str) -> None:
    lease = two.store.acquire("broken", "a ticker that died", 1)
    opened = two.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    two.store.release(lease)
    execute(two, damage)
    for _ in range(2):
        with pytest.raises(ScheduleError, match=f"DELETE FROM rlad_ticks WHERE id = {opened.id}"):
            two.tick("broken")
    assert two.tick_at(NIGHT).event == "promoted"
    assert f"id = {opened.id}" in rlad.invoke(app, ["schedule", "list"]).output
    execute(two, f"DELETE FROM rlad_ticks WHERE id = {opened.id}")
    assert [tick.event for tick in two.tick("broken")] == ["promoted"]


def test_invalid_row_of_an_ended_tick_is_left_out_of_the_history(two: Site, rlad: CliRunner) -> None:
    two.tick("broken")
    two.tick()
    execute(two, "UPDATE rlad_ticks SET record = '{' WHERE schedule = 'broken'")
    two.add(name="broken", directory=str(two.folder / "broken"), model="kk", start_from=None)
    assert two.store.history("broken") == []
    assert [tick.event for tick in two.store.finished()] == ["promoted"]
    assert "rlad_ticks" in rlad.invoke(app, ["schedule", "list"]).output
    two.clock.now = NIGHT + 86_400
    assert [tick.event for tick in two.tick("broken")] == ["kept"]  # the next run is not affected


@pytest.mark.parametrize("damage", [DAMAGES[0][0], DAMAGES[2][0], DAMAGES[6][0], DAMAGES[7][0], TICK_DAMAGES[0]])
def test_daemon_reports_a_broken_schedule_once_and_ticks_the_others(
    two: Site, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipelines.schedules.daemon")
    lease = two.store.acquire("broken", "a ticker that died", 1)
    opened = two.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    two.store.save(lease, replace(opened, attempts=1))
    two.store.release(lease)
    execute(two, damage)
    ticker = Ticker(store=two.store, launcher=two.launcher, clock=two.clock)
    thread = threading.Thread(target=ScheduleDaemon(ticker, look_s=0.05).serve)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while [tick.event for tick in two.store.history("nightly")] != ["promoted"]:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        execute(two, "DELETE FROM rlad_ticks WHERE schedule = 'broken'")
        two.store.remove("broken")
        while "schedule_repaired schedule=broken" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        ticker.stop.set()
        thread.join(60)
    reports = [record.getMessage() for record in caplog.records if "schedule_broken" in record.getMessage()]
    assert len(reports) == 1
    assert "schedule=broken error=" in reports[0]


def test_text_that_is_not_utf_8_is_read_from_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'schedules.sqlite'}"
    store = ScheduleStore(url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO rlad_schedules VALUES (CAST(x'61ff' AS TEXT), '{}', 'f', 0, 0, 0, NULL, NULL)")
        )
    engine.dispose()
    assert [row.schedule for row in store.broken_rows()] == ["a\\xff"]
