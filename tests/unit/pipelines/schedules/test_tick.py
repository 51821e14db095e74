"""What a tick does, decides and records, whatever the run was, and whatever died in between."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.run.directory import RunDirectory
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import tick_run_id
from pipelines.schedules.tick import tick
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.errors import LeaseLostError, ScheduleError, TickInterruptedError

from .conftest import DAY, NIGHT, Site, records


def fails(reason: str) -> RunExit:
    return RunExit(status=1, reason=f"status 1: error: {reason}")


def test_nothing_happens_before_the_time(site: Site) -> None:
    assert site.tick() == []
    assert site.store.history("nightly") == []
    assert site.launcher.requests == []


def test_a_tick_at_its_time_runs_once_however_often_it_is_asked(site: Site) -> None:
    first = site.tick_at(NIGHT)
    assert (first.run_id, first.event, first.attempts) == ("nightly-20260511T020000Z", "promoted", 1)
    site.clock.now = NIGHT + 10
    assert site.tick() == []
    assert len(site.launcher.requests) == 1


def test_the_first_student_is_promoted_and_the_second_run_starts_from_it(site: Site) -> None:
    first = site.tick_at(NIGHT)
    second = site.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert first.plan is not None
    assert (first.plan.student, first.plan.parent) == ("start", None)
    assert second.plan is not None
    assert second.plan.parent == 1
    assert Path(second.plan.student) == site.registry.local_path(site.registry.get("kk", 1))
    assert second.outcome is not None
    assert (second.event, second.outcome.incumbent, second.outcome.incumbent_source) == (
        "promoted",
        1,
        "the run's start",
    )
    assert second.outcome.difference == pytest.approx(0.3)
    assert site.registry.aliases("kk") == {"production": 2, "best": 2}
    assert site.registry.get("kk", 2).lineage.parent == "kk@1"


def test_a_worse_student_is_kept_but_not_promoted(site: Site) -> None:
    site.tick_at(NIGHT, after=0.6)
    worse = site.tick_at(NIGHT + DAY, before=0.6, after=0.2)
    assert worse.event == "kept"
    assert worse.outcome is not None
    assert worse.outcome.difference == pytest.approx(-0.4)
    assert site.registry.aliases("kk") == {"production": 1, "best": 1}
    assert [version.version for version in site.registry.versions("kk")] == [1, 2]
    third = site.tick_at(NIGHT + 2 * DAY, before=0.6, after=0.6)
    assert third.plan is not None
    assert third.plan.parent == 1


def test_better_by_less_than_the_margin_is_not_promoted(site: Site) -> None:
    site.add(margin=0.35)
    site.tick_at(NIGHT, after=0.5)
    assert site.tick_at(NIGHT + DAY, before=0.5, after=0.8).event == "kept"
    assert site.tick_at(NIGHT + 2 * DAY, before=0.5, after=0.9).event == "promoted"


def test_better_by_what_chance_explains_is_not_promoted_but_is_the_best(site: Site) -> None:
    site.tick_at(NIGHT, after=0.5)
    close = site.tick_at(NIGHT + DAY, before=0.5, after=0.55)
    assert close.event == "kept"
    assert close.outcome is not None
    assert "chance" in close.outcome.reason
    assert site.registry.aliases("kk") == {"production": 1, "best": 2}


def test_a_fixed_start_is_compared_with_what_the_incumbents_own_run_measured(site: Site) -> None:
    site.add(start_from=None)
    site.tick_at(NIGHT, before=0.5, after=0.9)
    second = site.tick_at(NIGHT + DAY, before=0.1, after=0.7)
    assert second.plan is not None
    assert (second.plan.student, second.plan.parent) == ("start", None)
    assert second.outcome is not None
    assert second.outcome.incumbent_source == "its own run"
    assert second.outcome.difference == pytest.approx(-0.2)
    assert [request.arguments[0] for request in site.launcher.requests] == ["run", "run"]


def test_an_incumbent_that_another_evaluation_measured_is_asked_now(site: Site) -> None:
    site.add(start_from=None)
    site.tick_at(NIGHT, after=0.9)
    run = {**site.settings().run, "evaluation": {**site.settings().run["evaluation"], "samples": 2}}
    site.add(start_from=None, run=run, address="ray-head:6379")
    second = site.tick_at(NIGHT + DAY, before=0.1, after=0.7)
    assert second.outcome is not None
    assert second.outcome.incumbent_source == "evaluated now"
    assert second.outcome.difference == pytest.approx(0.0)
    evaluated = site.launcher.requests[-1].arguments
    assert evaluated[:2] == ("eval", str(site.registry.local_path(site.registry.get("kk", 1))))
    assert evaluated[-1] == "cluster.address=ray-head:6379"


def test_the_run_gets_its_configuration_and_evaluates_on_the_frozen_prompts(site: Site) -> None:
    site.add(address="ray-head:6379")
    write_prompt_file(records(["other"]), site.folder / "evaluation-source.jsonl")  # too late to matter
    site.tick_at(NIGHT)
    (request,) = site.launcher.requests
    command, config, *rest = request.arguments
    directory = site.folder / "nightly"
    assert (command, request.working_dir) == ("run", site.folder)
    assert rest == [
        "--run-dir",
        str(directory / "runs" / "nightly-20260511T020000Z"),
        "--resume",
        "--address",
        "ray-head:6379",
    ]
    settings = yaml.safe_load(Path(config).read_text())
    frozen = settings["evaluation"]["prompts"]["path"]
    assert frozen == str(directory / f"evaluation-{site.store.schedule('nightly').evaluation_fingerprint}.jsonl")
    assert [record.id for record in read_prompt_file(frozen)] == [f"e{index}" for index in range(20)]
    assert settings["name"] == "nightly-20260511T020000Z"


def test_runs_differ_in_seed_unless_told_otherwise(site: Site) -> None:
    def seeds() -> list[int]:
        return [yaml.safe_load(Path(request.arguments[1]).read_text())["seed"] for request in site.launcher.requests]

    site.tick_at(NIGHT)
    site.tick_at(NIGHT + DAY)
    assert len(set(seeds())) == 2
    site.add(vary_seed=False)
    site.tick_at(NIGHT + 2 * DAY)
    assert seeds()[-1] == 0


def test_an_evaluation_that_changed_under_the_schedule_fails_the_tick(site: Site) -> None:
    (frozen,) = (site.folder / "nightly").glob("evaluation-*.jsonl")
    write_prompt_file(records(["e0"]), frozen)
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts) == ("failed", 1)
    assert ended.reason is not None
    assert "is not the one that nightly was added with" in ended.reason
    assert site.launcher.requests == []


def test_a_frozen_evaluation_that_is_lost_is_made_again_if_its_source_is_the_same(site: Site) -> None:
    (frozen,) = (site.folder / "nightly").glob("evaluation-*.jsonl")
    before = frozen.read_bytes()
    frozen.unlink()
    assert site.tick_at(NIGHT).event == "promoted"
    assert frozen.read_bytes() == before
    frozen.unlink()
    write_prompt_file(records(["other"]), site.folder / "evaluation-source.jsonl")
    assert site.tick_at(NIGHT + DAY).event == "failed"


def test_a_schedule_is_not_changed_under_its_run(site: Site) -> None:
    lease = site.store.acquire("nightly", "me", 1)
    site.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    with pytest.raises(ScheduleError, match="cannot be changed under a run: r is under way"):
        site.add(margin=0.5)


def test_new_files_are_trained_on_and_what_is_evaluated_on_is_left_out(site: Site) -> None:
    site.add(prompts={"pattern": "in/*.jsonl", "use": "new"})
    (site.folder / "in").mkdir()
    write_prompt_file(records(["a", "b", "e3"]), site.folder / "in" / "1.jsonl")
    first = site.tick_at(NIGHT)
    assert first.plan is not None
    assert (first.plan.num_prompts, first.plan.left_out) == (2, 1)
    write_prompt_file(records(["b", "c"]), site.folder / "in" / "2.jsonl")
    second = site.tick_at(NIGHT + DAY)
    assert second.plan is not None
    assert [Path(file.path).name for file in second.plan.new_files] == ["2.jsonl"]
    config = yaml.safe_load(Path(site.launcher.requests[-1].arguments[1]).read_text())
    assert [record.id for record in read_prompt_file(config["prompts"]["path"])] == ["b", "c"]
    third = site.tick_at(NIGHT + 2 * DAY)
    assert third.event == "skipped"
    assert len(site.launcher.requests) == 2


def test_files_of_a_run_that_failed_are_new_again(site: Site) -> None:
    site.add(prompts={"pattern": "in/*.jsonl", "use": "new"}, retries=0)
    (site.folder / "in").mkdir()
    write_prompt_file(records(["a"]), site.folder / "in" / "1.jsonl")
    site.launcher.scripts = [lambda _: fails("no room")]
    assert site.tick_at(NIGHT).event == "failed"
    second = site.tick_at(NIGHT + DAY)
    assert second.plan is not None
    assert (second.event, len(second.plan.new_files)) == ("promoted", 1)


def test_a_run_that_fails_is_continued_up_to_its_budget_and_its_last_words_are_kept(site: Site) -> None:
    site.launcher.scripts = [lambda _: fails("lost a node"), lambda _: fails("lost another")]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts, ended.reason) == ("promoted", 3, None)
    assert len({request.arguments for request in site.launcher.requests}) == 1  # the same run, with --resume
    site.launcher.scripts = [lambda _: fails("out of memory")] * 3
    ended = site.tick_at(NIGHT + DAY)
    assert (ended.event, ended.attempts) == ("failed", 3)
    assert ended.reason is not None
    assert "status 1: error: out of memory (log: " in ended.reason


def test_a_run_past_its_deadline_is_ended_and_not_tried_again(site: Site) -> None:
    site.add(deadline_s=0.2)
    site.launcher.scripts = [lambda _: time.sleep(0.05)]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts, ended.reason) == ("failed", 1, "not finished within deadline_s 0.2")
    assert site.launcher.stopped == 1
    assert ended.spent_s > 0.2


def test_attempts_share_one_deadline(site: Site) -> None:
    site.add(deadline_s=0.5)

    def takes_a_while(_: RunRequest) -> RunExit:
        time.sleep(0.3)
        return fails("lost a node")

    site.launcher.scripts = [takes_a_while, lambda _: time.sleep(0.05)]
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts) == ("failed", 2)
    assert 0.5 < ended.spent_s < 0.8


def test_a_tick_that_is_told_to_end_stops_its_run_and_the_next_one_continues_it(site: Site) -> None:
    ticker, asked = site.ticker, list[RunRequest]()

    def stopped_meanwhile(request: RunRequest) -> None:
        asked.append(request)
        ticker.stop.set()

    site.launcher.scripts = [stopped_meanwhile]
    site.clock.now = NIGHT
    with pytest.raises(TickInterruptedError, match="continues it from its last checkpoint"):
        tick("nightly", ticker)
    assert site.launcher.stopped == 1
    (unfinished,) = site.store.unfinished("nightly")
    assert unfinished.attempts == 0  # nobody's fault
    assert site.store.schedule("nightly").lease_owner is None
    (ended,) = site.tick()
    assert (ended.run_id, ended.event) == (unfinished.run_id, "promoted")
    assert site.launcher.requests[0] == site.launcher.requests[1]


def test_an_unfinished_run_is_resumed_before_the_one_that_is_due(site: Site) -> None:
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    site.store.open_tick(
        lease, kind="cron", scheduled_at=NIGHT, run_id=tick_run_id("nightly", NIGHT, kind="cron"), status="running"
    )
    site.clock.now = NIGHT + DAY
    ended = site.tick()
    assert [each.run_id for each in ended] == ["nightly-20260511T020000Z", "nightly-20260512T020000Z"]
    assert [each.event for each in ended] == ["promoted", "kept"]


def test_a_run_whose_ticker_dies_every_time_is_given_up(site: Site) -> None:
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    opened = site.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    site.store.save(lease, replace(opened, attempts=3))
    site.clock.now = NIGHT + 60
    (ended,) = site.tick()
    assert (ended.event, ended.reason) == ("failed", "its ticker died in each of 3 attempts")
    assert site.launcher.requests == []


def test_a_ticker_that_died_right_after_it_moved_the_alias_is_not_asked_to_decide_again(site: Site) -> None:
    ended = site.tick_at(NIGHT)
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    site.store.save(lease, replace(ended, status="running", ended_at=None))
    site.clock.now = NIGHT + 60
    (again,) = site.tick()
    assert again.outcome == ended.outcome
    assert [version.version for version in site.registry.versions("kk")] == [1]
    assert len(site.registry.history("kk")) == 2  # production and best, once each


def test_whoever_lost_its_lease_ends_its_run_and_writes_nothing_more(site: Site) -> None:
    site.add(lease_s=1)

    def taken_over(_: RunRequest) -> None:
        site.clock.now += 10
        time.sleep(0.1)
        if not site.launcher.stopped:
            site.clock.now += 10
            try:
                site.store.acquire("nightly", "another", 3600)
            except ScheduleError:
                return

    site.launcher.scripts = [taken_over]
    site.clock.now = NIGHT
    with pytest.raises(LeaseLostError):
        site.tick()
    assert site.launcher.stopped == 1
    (left,) = site.store.history("nightly")
    assert (left.status, left.spent_s) == ("running", 0.0)
    assert site.registry.names() == []


def test_an_overlapping_tick_is_refused_and_recorded(site: Site) -> None:
    started, go_on = threading.Event(), threading.Event()

    def long_run(request: RunRequest) -> RunExit | None:
        site.clock.now += 0.01
        started.set()
        return site.launcher.finish(request) if go_on.wait(0.05) else None

    site.launcher.scripts = [long_run]
    site.clock.now = NIGHT
    first = threading.Thread(target=site.tick)
    first.start()
    assert started.wait(10)
    site.clock.now = NIGHT + 1
    assert site.tick() == []  # the time that is under way already
    (manual,) = site.tick(kind="manual")
    site.clock.now = NIGHT + DAY
    go_on.set()
    first.join(10)
    assert manual.event == "refused"
    assert manual.reason is not None
    assert "another tick of nightly is under way" in manual.reason
    assert [each.event for each in site.store.history("nightly")] == ["promoted", "refused"]
    assert len(site.launcher.requests) == 1


def test_a_tick_that_comes_too_late_is_missed(site: Site) -> None:
    site.clock.now = NIGHT + 3 * DAY - 60
    (missed,) = site.tick()
    assert (missed.event, missed.coalesced, missed.run_id) == ("missed", 2, None)
    assert site.launcher.requests == []
    assert site.tick() == []


def test_ticks_that_are_due_at_once_are_one_run(site: Site) -> None:
    ended = site.tick_at(NIGHT + 3 * DAY + 60)
    assert (ended.event, ended.coalesced, ended.run_id) == ("promoted", 3, "nightly-20260514T020000Z")


def test_a_paused_schedule_runs_only_when_asked_and_makes_nothing_up(site: Site) -> None:
    site.store.pause("nightly")
    site.clock.now = NIGHT + 60
    assert site.tick() == []
    (manual,) = site.tick(kind="manual")
    assert manual.run_id == "nightly-20260511T020100Z-manual"
    site.store.resume("nightly")
    assert site.tick() == []
    assert site.tick_at(NIGHT + DAY).run_id == "nightly-20260512T020000Z"


def test_retention_never_takes_what_an_alias_leads_to(site: Site) -> None:
    site.add(keep_versions=1)
    for day, (before, after) in enumerate(((0.5, 0.9), (0.9, 0.3), (0.9, 0.2))):
        ended = site.tick_at(NIGHT + day * DAY, before=before, after=after)
    assert ended.outcome is not None
    assert ended.outcome.given_up == (2,)
    assert [version.version for version in site.registry.versions("kk")] == [1, 3]


def test_a_promotion_by_hand_in_between_is_what_the_student_is_compared_with(site: Site) -> None:
    site.tick_at(NIGHT, after=0.5)
    site.tick_at(NIGHT + DAY, before=0.5, after=0.55)
    promote, meddled = site.registry.promote, list[int]()

    def somebody_promotes(request: RunRequest) -> RunExit:
        promote("kk", 2, expected=1, reason="by hand")
        meddled.append(2)
        return site.launcher.finish(request)

    site.launcher.scripts = [somebody_promotes]
    third = site.tick_at(NIGHT + 2 * DAY, before=0.5, after=0.9)
    assert meddled
    assert third.plan is not None
    assert third.outcome is not None
    assert (third.plan.parent, third.outcome.incumbent, third.outcome.incumbent_source) == (1, 2, "its own run")
    assert third.outcome.difference == pytest.approx(0.35)
    assert site.registry.aliases("kk")["production"] == 3


def test_an_offline_run_is_started_as_one(site: Site) -> None:
    run = {**site.settings().run, "objective": {"name": "sft"}, "offline": {}}
    site.add(run=run)
    site.tick_at(NIGHT)
    assert site.launcher.requests[0].arguments[0] == "offline"


def test_a_run_that_ends_well_without_a_result_is_a_failure(site: Site) -> None:
    site.add(retries=0)

    def writes_no_export(request: RunRequest) -> RunExit:
        site.launcher.write_run(request)
        run = RunDirectory(request.arguments[request.arguments.index("--run-dir") + 1])
        for file in run.export.iterdir():
            file.unlink()
        run.export.rmdir()
        return RunExit(status=0, reason=None)

    site.launcher.scripts = [writes_no_export]
    ended = site.tick_at(NIGHT)
    assert ended.event == "failed"
    assert ended.reason is not None
    assert "does not hold a finished run" in ended.reason


def test_the_end_of_a_tick_is_told_and_trouble_with_that_is_recorded(site: Site) -> None:
    told = site.folder / "told.json"
    site.add(notify={"command": ["sh", "-c", f"cat > {told}"]})
    site.tick_at(NIGHT)
    message = json.loads(told.read_text())
    assert (message["event"], message["outcome"]["version"]) == ("promoted", 1)
    site.add(notify={"command": ["sh", "-c", "echo nobody home >&2; exit 3"]})
    ended = site.tick_at(NIGHT + DAY)
    assert ended.event == "kept"
    assert ended.notice == "sh ended with status 3: nobody home"
    assert site.store.history("nightly")[-1] == ended
