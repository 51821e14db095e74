"""Command line of `rlad schedule`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.schedules.store import ScheduleStore

from .conftest import SMOKE, Site

Rlad = Callable[..., Result]


@pytest.fixture
def rlad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rlad:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLAD_SCHEDULES", f"sqlite:///{tmp_path / 'schedules.sqlite'}")
    return lambda *arguments: CliRunner().invoke(app, ["schedule", *arguments])


def added(rlad: Rlad, *arguments: str) -> Result:
    return rlad(
        "add",
        "nightly",
        str(SMOKE),
        "training.steps=2",
        "--cron",
        "0 2 * * *",
        "--timezone",
        "Europe/Berlin",
        *arguments,
    )


def test_added_schedule_is_shown_with_its_next_times(rlad: Rlad, tmp_path: Path) -> None:
    result = added(
        rlad,
        "--margin",
        "0.02",
        "--prompts",
        "prompts/*.jsonl",
        "--only-new",
        "--notify-command",
        "logger -t rlad",
        "--notify-on",
        "failed",
    )
    assert result.exit_code == 0, result.output
    assert "nightly ticks next at " in result.output
    shown: dict[str, Any] = json.loads(rlad("show", "nightly", "--json").output)
    assert len(shown["next"]) == 3
    assert all(time[11:16] == "02:00" for time in shown["next"])
    settings = shown["settings"]
    assert (settings["margin"], settings["prompts"]) == (0.02, {"pattern": "prompts/*.jsonl", "use": "new"})
    assert settings["notify"]["command"] == ["logger", "-t", "rlad"]
    assert settings["notify"]["events"] == ["failed"]
    assert settings["run"]["training"]["steps"] == 2
    assert (settings["directory"], settings["registry"]) == (
        str(tmp_path / "runs" / "nightly"),
        str(tmp_path / "registry"),
    )
    (frozen,) = (tmp_path / "runs" / "nightly").glob("evaluation-*.jsonl")
    assert frozen.read_text().count("\n") == 24
    assert "lr: 0.0002" in rlad("show", "nightly").output


def test_schedule_is_paused_resumed_replaced_and_removed(rlad: Rlad) -> None:
    assert added(rlad).exit_code == 0
    assert "already" not in rlad("pause", "nightly").output
    (row,) = json.loads(rlad("list", "--json").output)
    assert (row["state"], row["next"]) == ("paused", [])
    assert "paused" in rlad("list").output
    assert "ticks next at" in rlad("resume", "nightly").output
    again = added(rlad)
    assert again.exit_code == 1
    assert "--replace" in str(again.exception)
    assert added(rlad, "--margin", "0.5", "--replace").exit_code == 0
    assert json.loads(rlad("show", "nightly", "--json").output)["settings"]["margin"] == 0.5
    assert rlad("remove", "nightly").exit_code == 0
    assert json.loads(rlad("list", "--json").output) == []
    assert "no schedules" in rlad("list").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "nightly", str(SMOKE), "--cron", "0 2 * *"), "five cron fields"),
        (("add", "nightly", str(SMOKE), "--cron", "0 2 30 2 *"), "Bad day-of-month"),
        (("add", "nightly", str(SMOKE), "training.stepz=2", "--cron", "0 2 * * *"), "did you mean `steps`"),
        (("add", "night ly", str(SMOKE), "--cron", "0 2 * * *"), "name: String should match"),
        (("add", "nightly", str(SMOKE), "--cron", "0 2 * * *", "--margin", "2"), "margin"),
        (("add", "nightly", str(SMOKE), "--cron", "0 2 * * *", "--notify-on", "always"), "notify.events"),
        (
            ("add", "nightly", str(SMOKE), "--cron", "0 2 * * *", "--address", "http://head:8265"),
            "runs join the cluster from here",
        ),
        (("pause",), "expected the name of a schedule, or --all"),
        (("pause", "hourly", "--all"), "expected the name of a schedule, or --all"),
        (("pause", "--all", "--reason", "upgrade"), "no history for a --reason"),
        (("resume", "--all", "--reason", "upgrade"), "no history for a --reason"),
        (("show", "hourly"), "no schedule 'hourly'"),
        (("run-now", "hourly"), "no schedule 'hourly'"),
        (("tick", "hourly"), "no schedule 'hourly'"),
        (("list", "--store", "nowhere"), "requires a database URL"),
    ],
)
def test_invalid_input_is_reported_as_an_rlad_error(rlad: Rlad, arguments: tuple[str, ...], message: str) -> None:
    result = rlad(*arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_tick_before_its_time_reports_that_nothing_is_due(rlad: Rlad) -> None:
    added(rlad)
    result = rlad("tick", "nightly")
    assert result.exit_code == 0
    assert "nothing is due" in result.output
    assert "has not ticked yet" in rlad("history", "nightly").output


def test_run_that_cannot_start_fails_with_its_error_message(rlad: Rlad, tmp_path: Path) -> None:
    rlad(
        "add",
        "nightly",
        str(SMOKE),
        "student.path=/nowhere",
        "teacher.path=/nowhere",
        "--cron",
        "0 2 * * *",
        "--retries",
        "0",
    )
    result = rlad("run-now", "nightly", "--store", os.environ["RLAD_SCHEDULES"])
    assert result.exit_code == 1
    assert "failed" in result.output
    (tick,) = json.loads(rlad("history", "nightly", "--json").output)
    assert (tick["event"], tick["attempts"], tick["kind"]) == ("failed", 1, "manual")
    assert "status 1: error: " in tick["reason"]
    assert "/nowhere" in tick["reason"]
    assert "failed" in rlad("history", "nightly").output


def test_history_tells_a_tick_in_a_line(site: Site, rlad: Rlad) -> None:
    first = site.tick_at(site.clock.now + 60)
    assert first.event == "promoted"
    result = rlad("history", "nightly")
    (line,) = result.output.splitlines()
    assert line.startswith("2026-05-11T02:00:00Z  promoted  nightly-20260511T020000Z  from start")
    assert "version 1: 50.0% to 60.0%" in line
    assert "nothing is in production yet" in line


def test_default_store_is_created_in_the_user_data_directory(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RLAD_SCHEDULES"}
    command = [sys.executable, "-m", "pipelines", "schedule", "list"]
    result = subprocess.run(
        command,
        env={**environment, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=SMOKE.parents[1],
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "rlad" / "schedules.sqlite").is_file()
    assert ScheduleStore(f"sqlite:///{tmp_path / 'rlad' / 'schedules.sqlite'}").schedules() == []
