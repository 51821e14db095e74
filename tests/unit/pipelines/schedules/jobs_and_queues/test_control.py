"""Control of schedules: triggers, pause of all, changes in place, dates, catch-up, and runs only after changes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines.schedules.adding import edit_schedule
from pipelines.schedules.http.triggers import serving_triggers
from rlad.data.prompt_files import write_prompt_file
from rlad.errors import ConfigError, ScheduleError

from ..conftest import DAY, NIGHT, Site, records

TOKEN = "t" * 20


def test_trigger_becomes_one_tick_and_a_repeated_key_none(site: Site) -> None:
    assert site.store.triggers.add("nightly", key="data-1")
    assert site.store.triggers.add("nightly")
    (ended,) = site.tick()
    assert (ended.kind, ended.event, ended.run_id) == ("trigger", "promoted", "nightly-20260511T015900Z-trigger")
    assert site.tick() == []
    assert not site.store.triggers.add("nightly", key="data-1")
    assert site.tick() == []
    assert site.store.triggers.add("nightly", key="data-2")
    (ended,) = site.tick()
    assert ended.run_id == "nightly-20260511T015902Z-trigger"  # one second after the last one of the same second
    assert site.tick_at(NIGHT).kind == "cron"


def post(port: int, path: str, body: bytes = b"", token: str = TOKEN) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_http_trigger_requires_the_token_and_a_schedule_that_ticks(site: Site) -> None:
    path = "/schedules/nightly/trigger"
    with serving_triggers(site.store, token=TOKEN, host="127.0.0.1", port=0) as port:
        assert post(port, path, token="wrong")[0] == 401
        assert post(port, "/schedules/hourly/trigger")[0] == 404
        assert post(port, "/schedules")[0] == 404
        assert post(port, path, b"[1]")[0] == 400
        assert post(port, path, b"x" * 5000)[0] == 413
        assert site.tick() == []
        assert post(port, path, b'{"key": "v1"}') == (202, {"schedule": "nightly", "is_new": True})
        assert post(port, path, b'{"key": "v1"}') == (200, {"schedule": "nightly", "is_new": False})
        site.store.pause("nightly")
        assert post(port, path)[0] == 409
    site.store.resume("nightly")
    assert [tick.kind for tick in site.tick()] == ["trigger"]


def test_http_trigger_refuses_a_short_token(site: Site) -> None:
    with (
        pytest.raises(ConfigError, match="at least 16 characters; got 0"),
        serving_triggers(site.store, token="", host="127.0.0.1", port=0),
    ):
        pass


def test_pause_of_all_covers_later_schedules_and_skips_missed_times(site: Site) -> None:
    site.store.pauses.begin()
    site.add(name="later", directory=str(site.folder / "later"))
    site.clock.now = NIGHT + 60
    assert site.tick() == site.tick("later") == []
    site.store.pause("later")
    site.store.pauses.end()
    assert [schedule.is_paused for schedule in site.store.schedules()] == [True, False]
    assert site.tick() == []
    assert site.tick_at(NIGHT + DAY).event == "promoted"


def test_edit_changes_a_setting_and_records_who_and_why(site: Site) -> None:
    (frozen,) = (site.folder / "nightly").glob("evaluation-*.jsonl")
    before = frozen.read_bytes()
    write_prompt_file(records(["other"]), site.folder / "evaluation-source.jsonl")
    overrides = ["priority=5", "cron=0 3 * * *", "run.training.steps=7"]
    edit_schedule(site.store, "nightly", overrides, author="me@here", reason="data comes later")
    config = site.store.schedule("nightly").config
    assert (config.priority, config.cron, config.run["training"]["steps"]) == (5, "0 3 * * *", 7)
    (change,) = site.store.changes.of("nightly")
    assert (change.author, change.action, change.reason) == ("me@here", "edited", "data comes later")
    assert change.settings["cron"] == ("0 2 * * *", "0 3 * * *")
    assert set(change.settings) == {"priority", "cron", "run.training.steps"}
    assert frozen.read_bytes() == before
    assert edit_schedule(site.store, "nightly", ["priority=5"], author="me", reason=None) == {}
    with pytest.raises(ConfigError, match="priorty"):
        edit_schedule(site.store, "nightly", ["priorty=5"], author="me")
    with pytest.raises(ConfigError, match="cannot be changed"):
        edit_schedule(site.store, "nightly", ["name=x"], author="me")


def test_edit_during_a_run_changes_times_but_not_the_run(site: Site) -> None:
    lease = site.store.acquire("nightly", "me", 1)
    site.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    with pytest.raises(ScheduleError, match=r"unfinished run, r, which run\.training\.steps would change"):
        edit_schedule(site.store, "nightly", ["run.training.steps=7", "priority=1"], author="me")
    assert set(edit_schedule(site.store, "nightly", ["priority=1"], author="me")) == {"priority"}


def test_ticks_are_between_the_start_and_the_end_date(site: Site) -> None:
    site.add(start_at="2026-05-12T04:00:00+02:00", end_at="2026-05-13T02:00:00Z", catch_up="all")
    site.clock.now = NIGHT + 600
    assert site.tick() == []
    assert site.tick_at(NIGHT + DAY).run_id == "nightly-20260512T020000Z"
    assert site.tick_at(NIGHT + 2 * DAY).run_id == "nightly-20260513T020000Z"
    site.clock.now = NIGHT + 3 * DAY
    assert site.tick() == []


def test_time_before_the_end_date_is_missed_after_its_grace_period(site: Site) -> None:
    site.add(end_at="2026-05-11T12:00:00Z")
    site.clock.now = NIGHT + 3601
    assert [tick.event for tick in site.tick()] == ["missed"]


def test_catch_up_all_runs_each_time_in_order(site: Site) -> None:
    site.add(cron="0 * * * *", catch_up="all", misfire_grace_s=7200)
    site.clock.now = NIGHT + 3 * 3600
    ended = [tick for _ in range(4) for tick in site.tick()]
    assert [(tick.run_id, tick.coalesced) for tick in ended] == [
        ("nightly-20260511T030000Z", 1),  # 02:00 is late and part of it
        ("nightly-20260511T040000Z", 0),
        ("nightly-20260511T050000Z", 0),
    ]


def test_catch_up_skip_runs_no_time_that_is_over_a_minute_late(site: Site) -> None:
    site.add(catch_up="skip")
    site.clock.now = NIGHT + 61
    assert [tick.event for tick in site.tick()] == ["missed"]
    assert site.tick_at(NIGHT + DAY + 60).event == "promoted"


def test_tick_is_skipped_until_prompts_change(site: Site) -> None:
    site.add(run_if="changed", prompts={"pattern": "in/*.jsonl"})
    (site.folder / "in").mkdir()
    write_prompt_file(records(["a"]), site.folder / "in" / "1.jsonl")
    assert site.tick_at(NIGHT).event == "promoted"
    second = site.tick_at(NIGHT + DAY)
    assert (second.event, second.reason) == (
        "skipped",
        "prompts, teachers and settings have not changed since the last finished run",
    )
    write_prompt_file(records(["b"]), site.folder / "in" / "2.jsonl")
    assert site.tick_at(NIGHT + 2 * DAY).status == "finished"
    edit_schedule(site.store, "nightly", ["run.training.steps=5"], author="me")
    assert site.tick_at(NIGHT + 3 * DAY).status == "finished"
    (manual,) = site.tick(kind="manual")
    assert manual.status == "finished"
    assert len(site.launcher.requests) == 4
    assert Path(site.launcher.requests[0].arguments[1]).is_file()
