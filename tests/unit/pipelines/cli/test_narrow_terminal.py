"""Lists in a terminal of 80 columns: no word is broken, and names and states stay visible."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from actors.controller import RunState
from actors.pool.pool import PoolState
from pipelines.cli.jobs import print_jobs
from pipelines.cli.tables.schedule import print_history, print_schedules, schedule_facts
from pipelines.cluster.live_run import print_status
from pipelines.jobs.client import Job
from pipelines.run.directory import RunDirectory
from pipelines.schedules.records import RunOutcome, RunPlan, Schedule, Tick
from pipelines.schedules.state.queue import QueueEntry
from rlad.config.schedule import ScheduleConfig

WIDTH = 80
RUN_ID = "nightly-knights-and-knaves-20260511T020000Z"

JOB = Job(
    id="qwen3-0.6b-knights-and-knaves-2k-1a2b3c4d",
    status="succeeded",
    message="",
    entrypoint="rlad run",
    run_dir="/mnt/shared/experiments/distillation/qwen3-0.6b-knights-and-knaves-2k/runs/2026-05-11",
    settings=None,
    started_at=1778464800.0,
    ended_at=1778468400.0,
    exit_code=0,
    is_submitted=True,
)
SCHEDULE = Schedule(
    config=ScheduleConfig(
        name="nightly-knights-and-knaves",
        run={},
        cron="0 2 * * *",
        timezone="America/Argentina/Buenos_Aires",
        working_dir="/srv",
        directory="/srv/runs",
        registry="/srv/registry",
        model="knights-and-knaves-student-of-the-eight-gpu-site",
    ),
    evaluation_fingerprint="0123456789abcdef",
    is_paused=False,
    active_since=0.0,
    lease_owner=None,
    lease_expires_at=None,
)
TICK = Tick(
    schedule=SCHEDULE.name,
    kind="cron",
    status="finished",
    scheduled_at=1778464800.0,
    run_id=RUN_ID,
    coalesced=0,
    started_at=1778464800.0,
    ended_at=1778468400.0,
    attempts=2,
    spent_s=3600.0,
    plan=RunPlan(
        registry="/srv/registry",
        model="kk",
        student="/srv/registry/kk/3",
        parent=3,
        num_prompts=4096,
        files=12,
        new_files=(),
        left_out=0,
        evaluation_fingerprint="0123456789abcdef",
    ),
    outcome=RunOutcome(
        before=0.5,
        after=0.75,
        version=4,
        incumbent=3,
        incumbent_source="the run's start",
        is_promoted=True,
        reason="better (75.0% against 50.0%; 95% confidence interval of the difference: 10.0% to 40.0%)",
        difference=0.25,
        interval=(0.1, 0.4),
    ),
)


def terminal() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=WIDTH, force_terminal=True, color_system=None), output


def assert_readable(text: str, *words: str) -> None:
    """Each word is unbroken, and only a line that consists of one word is longer than the terminal."""
    for word in words:
        assert word in text, f"{word} is broken or missing:\n{text}"
    assert not [line for line in text.splitlines() if len(line) > WIDTH and len(line.split()) > 1], text


def test_job_list_shows_status_and_job_on_one_line_and_the_run_directory_unbroken() -> None:
    console, output = terminal()
    print_jobs(console, [JOB, replace(JOB, id="short-1", status="running", ended_at=None)])
    first = output.getvalue().splitlines()[1]
    assert first.startswith(f"succeeded  {JOB.id}")
    assert str(JOB.run_dir) in output.getvalue()


def test_job_list_of_usual_names_fits_the_terminal() -> None:
    console, output = terminal()
    print_jobs(console, [replace(JOB, id="qwen3-0.6b-kk-2k-1a2b3c4d", run_dir="/shared/runs/qwen3-0.6b-kk-2k")])
    assert_readable(output.getvalue(), "succeeded", "qwen3-0.6b-kk-2k-1a2b3c4d", "/shared/runs/qwen3-0.6b-kk-2k")


def test_schedule_list_is_readable() -> None:
    console, output = terminal()
    print_schedules(console, [(SCHEDULE, [TICK])])
    config = SCHEDULE.config
    assert_readable(output.getvalue(), "waiting", config.name, config.timezone, config.model, "promoted")
    assert output.getvalue().splitlines()[1].startswith(f"waiting  {config.name}")


def test_schedule_list_shows_the_place_in_the_queue() -> None:
    def entry(name: str, *, has_slot: bool, queue: str = "local") -> QueueEntry:
        return QueueEntry(schedule=name, queue=queue, priority=0, requested_at=0.0, has_slot=has_slot)

    own = SCHEDULE.config.name
    before = [entry("elsewhere", queue="http://ray:8265", has_slot=False), entry("first", has_slot=True)]
    queued = [*before, entry("second", has_slot=False), entry(own, has_slot=False)]
    console, output = terminal()
    print_schedules(console, [(SCHEDULE, [TICK])], queued=queued)
    assert output.getvalue().splitlines()[1].startswith(f"queued  {own}")
    assert_readable(output.getvalue(), "place", "2", "queue", "local,")
    running = schedule_facts(SCHEDULE, [TICK], [entry(own, has_slot=True)])
    assert (running["state"], running["queue"], running["queue_place"]) == ("waiting", "local", None)


def test_schedule_history_is_readable() -> None:
    console, output = terminal()
    print_history(console, SCHEDULE.name, [TICK])
    assert_readable(output.getvalue(), "2026-05-11T02:00:00Z", "promoted", RUN_ID, "version 4:", "confidence")


def test_history_that_is_not_printed_to_a_terminal_has_one_line_per_tick() -> None:
    output = io.StringIO()
    print_history(Console(file=output, width=WIDTH), SCHEDULE.name, [TICK, TICK])
    assert len(output.getvalue().splitlines()) == 2


def test_pool_table_of_a_live_run_is_readable() -> None:
    pools = {
        name: PoolState(target=4, ready=3, starting=1, draining=0)
        for name in ("rollout", "teacher-of-mathematics", "verifier", "reward_open-ended-answers")
    }
    state = RunState(phase="training", step=12, total_steps=100, metrics={}, pools=pools, updated_at=0.0)
    console, output = terminal()
    print_status(RunDirectory(Path("runs/short")), state, console)
    assert_readable(output.getvalue(), "runs/short: training, 12 of 100 steps", *pools)
