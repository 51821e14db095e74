"""Ticks of a schedule: when they run, which prompts and configuration a run gets, and how its end is recorded."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter
from rich.console import Console

from pipelines.cli.tables.schedule import history_facts, print_history
from pipelines.run.cost import write_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.status import STOPPED_EXIT_CODE
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import Lease, Tick
from pipelines.schedules.rows import tick_json
from rlad.config.monitoring.cost import CostConfig
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.errors import ScheduleError
from rlad.monitoring.cost import ReservedHours, RunCost

from .conftest import DAY, NIGHT, Site, failed_exit, records


def test_no_tick_before_its_time(site: Site) -> None:
    assert site.tick() == []
    assert site.store.history("nightly") == []
    assert site.launcher.requests == []


def test_a_time_runs_once_even_if_tick_is_called_again(site: Site) -> None:
    first = site.tick_at(NIGHT)
    assert (first.run_id, first.event, first.attempts) == ("nightly-20260511T020000Z", "promoted", 1)
    site.clock.now = NIGHT + 10
    assert site.tick() == []
    assert len(site.launcher.requests) == 1


def test_run_gets_its_configuration_and_evaluates_on_the_frozen_prompts(site: Site) -> None:
    site.add(address="ray-head:6379")
    write_prompt_file(
        records(["other"]), site.folder / "evaluation-source.jsonl"
    )  # changed after the schedule was added
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


def test_every_ended_tick_has_the_cost_that_its_run_recorded(site: Site) -> None:
    def spend(request: RunRequest, gpu_hours: float) -> None:
        run = RunDirectory(request.output)
        run.path.mkdir(parents=True, exist_ok=True)
        pools = {"rollout": ReservedHours(gpu=gpu_hours, cpu=1)}
        write_cost(run, CostConfig(price_per_gpu_hour=2), pools, attempts=1, warned_of={})

    def finish(request: RunRequest) -> RunExit:
        ended = site.launcher.finish(request)
        spend(request, 10)
        return ended

    def stop(request: RunRequest) -> RunExit:
        spend(request, 3)
        return RunExit(status=STOPPED_EXIT_CODE, reason="the budget is used up")

    site.launcher.scripts = [finish, stop]
    finished, stopped = site.tick_at(NIGHT), site.tick_at(NIGHT + DAY)
    earlier = site.tick_at(NIGHT + 2 * DAY)  # its run records no cost, as runs of earlier versions
    assert finished.cost == RunCost(gpu_hours=10, cpu_hours=1, amount=20, currency="USD")
    assert (stopped.event, stopped.reason) == ("stopped", "the budget is used up")
    assert stopped.cost == RunCost(gpu_hours=3, cpu_hours=1, amount=6, currency="USD")
    assert earlier.cost is None
    assert site.registry.get("kk", 1).lineage.cost == finished.cost
    facts = history_facts(site.store.history("nightly"))
    assert [tick["total_cost"]["amounts"] for tick in facts] == [{"USD": 20}, {"USD": 26}, {"USD": 26}]
    output = io.StringIO()
    print_history(Console(file=output, width=400), "nightly", site.store.history("nightly"), last=1)
    assert output.getvalue().splitlines()[-1] == "cost of 2 runs: 13.00 GPU-hours, 2.00 CPU-hours, 26.00 USD"


def test_record_of_an_earlier_version_has_no_cost(site: Site) -> None:
    site.tick_at(NIGHT)
    (written,) = site.store.history("nightly")
    old = json.loads(tick_json(written))
    del old["cost"]
    assert TypeAdapter(Tick).validate_python(old).cost is None


def test_a_new_price_is_no_reason_to_run(site: Site) -> None:
    site.add(run_if="changed")
    assert site.tick_at(NIGHT).event == "promoted"
    settings = site.settings().run
    site.add(run_if="changed", run={**settings, "cost": {"price_per_cpu_hour": 1.0}})
    assert site.tick_at(NIGHT + DAY).event == "skipped"


def test_runs_differ_in_seed_unless_vary_seed_is_off(site: Site) -> None:
    def seeds() -> list[int]:
        return [yaml.safe_load(Path(request.arguments[1]).read_text())["seed"] for request in site.launcher.requests]

    site.tick_at(NIGHT)
    site.tick_at(NIGHT + DAY)
    assert len(set(seeds())) == 2
    site.add(vary_seed=False)
    site.tick_at(NIGHT + 2 * DAY)
    assert seeds()[-1] == 0


def test_changed_frozen_evaluation_fails_the_tick(site: Site) -> None:
    (frozen,) = (site.folder / "nightly").glob("evaluation-*.jsonl")
    write_prompt_file(records(["e0"]), frozen)
    ended = site.tick_at(NIGHT)
    assert (ended.event, ended.attempts) == ("failed", 1)
    assert ended.reason is not None
    assert "has changed since schedule nightly was added" in ended.reason
    assert site.launcher.requests == []


def test_missing_frozen_evaluation_is_made_again_from_an_unchanged_source(site: Site) -> None:
    (frozen,) = (site.folder / "nightly").glob("evaluation-*.jsonl")
    before = frozen.read_bytes()
    frozen.unlink()
    assert site.tick_at(NIGHT).event == "promoted"
    assert frozen.read_bytes() == before
    frozen.unlink()
    write_prompt_file(records(["other"]), site.folder / "evaluation-source.jsonl")
    assert site.tick_at(NIGHT + DAY).event == "failed"


def test_schedule_with_an_unfinished_run_cannot_be_changed(site: Site) -> None:
    lease = site.store.acquire("nightly", "me", 1)
    site.store.open_tick(lease, kind="cron", scheduled_at=NIGHT, run_id="r", status="running")
    with pytest.raises(ScheduleError, match="nightly has an unfinished run, r, and cannot be changed"):
        site.add(margin=0.5)


def test_run_trains_on_new_files_without_evaluation_prompts(site: Site) -> None:
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


def test_files_of_a_failed_run_stay_new(site: Site) -> None:
    site.add(prompts={"pattern": "in/*.jsonl", "use": "new"}, retries=0)
    (site.folder / "in").mkdir()
    write_prompt_file(records(["a"]), site.folder / "in" / "1.jsonl")
    site.launcher.scripts = [lambda _: failed_exit("no room")]
    assert site.tick_at(NIGHT).event == "failed"
    second = site.tick_at(NIGHT + DAY)
    assert second.plan is not None
    assert (second.event, len(second.plan.new_files)) == ("promoted", 1)


def test_overlapping_tick_is_refused_and_recorded(site: Site) -> None:
    started, may_end = threading.Event(), threading.Event()

    def long_run(request: RunRequest) -> RunExit | None:
        site.clock.now += 0.01
        started.set()
        return site.launcher.finish(request) if may_end.wait(0.05) else None

    site.launcher.scripts = [long_run]
    site.clock.now = NIGHT
    first = threading.Thread(target=site.tick)
    first.start()
    assert started.wait(10)
    site.clock.now = NIGHT + 1
    assert site.tick() == []  # the active tick has this scheduled time
    (manual,) = site.tick(kind="manual")
    site.clock.now = NIGHT + DAY
    may_end.set()
    first.join(10)
    assert manual.event == "refused"
    assert manual.reason is not None
    assert "another tick of nightly is active" in manual.reason
    assert [tick.event for tick in site.store.history("nightly")] == ["promoted", "refused"]
    assert len(site.launcher.requests) == 1


def test_refused_time_runs_when_the_other_ticker_has_ended(site: Site) -> None:
    lease = site.store.acquire("nightly", "another", 3600)
    site.clock.now = NIGHT
    assert refused_by_a_live_ticker(site, lease) == "refused"
    assert refused_by_a_live_ticker(site, lease) is None  # one record per time
    site.store.release(lease)
    assert site.tick_at(NIGHT + 60).run_id == "nightly-20260511T020000Z"
    assert site.tick() == []
    assert [tick.event for tick in site.store.history("nightly")] == ["refused", "promoted"]


def test_time_refused_until_its_grace_period_ended_is_not_missed_too(site: Site) -> None:
    lease = site.store.acquire("nightly", "another", 3600)
    site.clock.now = NIGHT
    refused_by_a_live_ticker(site, lease)
    site.store.release(lease)
    site.clock.now = NIGHT + 2 * 3600
    assert site.tick() == []
    assert [tick.event for tick in site.store.history("nightly")] == ["refused"]
    assert site.tick_at(NIGHT + DAY).event == "promoted"


def refused_by_a_live_ticker(site: Site, lease: Lease) -> str | None:
    """Tick while the holder of the lease renews it, and return the event."""
    ended: list[Tick] = []
    thread = threading.Thread(target=lambda: ended.extend(site.tick()))
    thread.start()
    while thread.is_alive():
        site.store.renew(lease, 3600)
        site.clock.now += 0.001  # so that each renewal changes the expiry
        thread.join(0.05)
    return ended[0].event if ended else None


def test_time_that_comes_while_an_unfinished_run_is_continued_runs_after_it(site: Site) -> None:
    lease = site.store.acquire("nightly", "a ticker that died", 1)
    site.store.open_tick(lease, kind="manual", scheduled_at=NIGHT - 60, run_id="r", status="running")
    site.clock.now = NIGHT - 30

    def long_run(request: RunRequest) -> RunExit:
        site.clock.now = NIGHT
        return site.launcher.finish(request)

    site.launcher.scripts = [long_run]
    assert [tick.run_id for tick in site.tick()] == ["r", "nightly-20260511T020000Z"]


def test_tick_after_the_grace_period_is_missed(site: Site) -> None:
    site.clock.now = NIGHT + 3 * DAY - 60
    (missed,) = site.tick()
    assert (missed.event, missed.coalesced, missed.run_id) == ("missed", 2, None)
    assert site.launcher.requests == []
    assert site.tick() == []


def test_overdue_ticks_are_coalesced_into_one_run(site: Site) -> None:
    ended = site.tick_at(NIGHT + 3 * DAY + 60)
    assert (ended.event, ended.coalesced, ended.run_id) == ("promoted", 3, "nightly-20260514T020000Z")


def test_paused_schedule_runs_only_manually_and_skips_missed_times(site: Site) -> None:
    site.store.pause("nightly")
    site.clock.now = NIGHT + 60
    assert site.tick() == []
    (manual,) = site.tick(kind="manual")
    assert manual.run_id == "nightly-20260511T020100Z-manual"
    site.store.resume("nightly")
    assert site.tick() == []
    assert site.tick_at(NIGHT + DAY).run_id == "nightly-20260512T020000Z"


def test_offline_distillation_is_started_with_the_run_command(site: Site) -> None:
    run = {**site.settings().run, "objective": {"name": "sft"}, "offline": {}}
    site.add(run=run)
    site.tick_at(NIGHT)
    assert site.launcher.requests[0].arguments[0] == "run"


def test_tick_end_is_notified_and_a_failed_notification_is_recorded(site: Site) -> None:
    message_file = site.folder / "message.json"
    site.add(notify={"command": ["sh", "-c", f"cat > {message_file}"]})
    site.tick_at(NIGHT)
    message = json.loads(message_file.read_text())
    assert (message["event"], message["outcome"]["version"]) == ("promoted", 1)
    site.add(notify={"command": ["sh", "-c", "echo no receiver >&2; exit 3"]})
    ended = site.tick_at(NIGHT + DAY)
    assert ended.event == "kept"
    assert ended.notice == "command sh ended with status 3: no receiver"
    assert site.store.history("nightly")[-1] == ended
