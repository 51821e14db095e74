"""Recurring runs with real engines: daemon, overlapping tick, killed ticker, continued run, registry and promotion."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.schedules.records import RunOutcome, RunPlan, Tick
from pipelines.schedules.store import ScheduleStore
from rlad.data.knights_knaves.prompts import generate_prompts
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.ledger import Ledger
from rlad.registry.registry import ModelRegistry
from tests.processes import still_alive

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3000)]  # the first test waits for the whole fixture

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STEPS, LEASE_S = 3, 20
# Without a teacher: these tests are about schedules, and every run would start one.
SHORT = ["objective.name=grpo", "teacher=null", "training.prompts_per_step=4", "checkpoints.every_steps=1"]
SHORT += ["evaluation.every_steps=0", "evaluation.samples=4"]
MODEL = "kk-student"
# Runs in its own process, since Ray reads the token when a process starts. It ends when its standard input is closed.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Directory of the schedules, and the token of their cluster."""

    folder: Path
    token: str

    def rlad(self, *arguments: str | Path, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "pipelines", "schedule", *map(str, arguments), "--store", self.store]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'schedules.sqlite'}"

    def history(self, name: str) -> list[Tick]:
        store = ScheduleStore(self.store)
        try:
            return store.history(name)
        finally:
            store.close()

    def runs(self, name: str) -> list[Tick]:
        return [tick for tick in self.history(name) if tick.run_id is not None]

    def run(self, tick: Tick) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / tick.schedule / "runs" / str(tick.run_id))

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry.open(str(self.folder / "registry"))


def wait_for(event: str, done: Callable[[], bool], timeout_s: float = 900) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"{event} did not happen within {timeout_s} s"
        time.sleep(0.5)  # a look opens the database


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A schedule after two runs. The second one had a ruinous learning rate, and was killed and continued."""
    site = Site(folder=tmp_path_factory.mktemp("site"), token=secrets.token_hex(32))
    prompts = generate_prompts(form="compact", people={2: 1}, count=64, split="train", seed=0)
    (site.folder / "prompts").mkdir()
    write_prompt_file(prompts[:32], site.folder / "prompts" / "monday.jsonl")
    write_prompt_file(prompts[32:], site.folder / "tuesday.jsonl")  # added before the second run
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=site.environment
    )
    assert cluster.stdout is not None
    address = next(line.split()[1] for line in cluster.stdout if line.startswith("address"))
    try:
        run_schedules(site, address)
        yield site
    finally:
        cluster.communicate(timeout=60)


def run_schedules(site: Site, address: str) -> None:
    options = ["--address", address, "--retry-wait-s", "1", "--model", MODEL]
    options += ["--lease-s", str(LEASE_S)]  # after the kill of a ticker the next one waits for the end of its lease
    every_minute = ["--cron", "* * * * *", "--timezone", "Europe/Berlin", "--prompts", "prompts/*.jsonl"]
    added = site.rlad("add", "nightly", SMOKE, *SHORT, f"training.steps={STEPS}", *every_minute, *options)
    assert added.returncode == 0, added.stderr
    with serving(site, look_s=3600):  # only the timer can start the tick
        first_run_by_the_daemon(site)
    (site.folder / "tuesday.jsonl").rename(site.folder / "prompts" / "tuesday.jsonl")
    edited = site.rlad("edit", "nightly", "run.learner.optimizer.lr=0.05")
    assert edited.returncode == 0, edited.stderr
    with serving(site, look_s=1):
        second_run_killed_and_continued(site)


@contextmanager
def serving(site: Site, *, look_s: float) -> Iterator[None]:
    """Run a daemon for the duration of the block, and stop it cleanly."""
    with (site.folder / "daemon.log").open("ab") as log:
        command = site.command("serve", "--look-s", str(look_s))
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=site.folder, env=site.environment)
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        status = daemon.wait(300)
    assert status == 0


def first_run_by_the_daemon(site: Site) -> None:
    wait_for("the first tick", lambda: bool(site.runs("nightly")))
    assert site.rlad("pause", "nightly").returncode == 0  # otherwise it would tick every minute
    overlapping = site.rlad("run-now", "nightly")
    assert overlapping.returncode == 1
    assert "refused" in overlapping.stdout
    wait_for("the end of the first run", lambda: site.runs("nightly")[0].status != "running")
    assert site.runs("nightly")[0].status == "finished", site.runs("nightly")[0].reason


def second_run_killed_and_continued(site: Site) -> None:
    with subprocess.Popen(
        site.command("run-now", "nightly"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=site.folder,
        env=site.environment,
    ) as ticker:
        wait_for("the second run", lambda: len(site.runs("nightly")) == 2)
        run = site.run(site.runs("nightly")[1])
        wait_for("its first step", lambda: bool(read_json_lines(run.metrics)))
        children = psutil.Process(ticker.pid).children(recursive=True)
        os.kill(ticker.pid, signal.SIGKILL)
    assert children
    assert still_alive(children, 60) == []  # a run without its ticker would be unsupervised
    assert len(read_json_lines(run.metrics)) < STEPS
    wait_for("the end of the second run", lambda: site.runs("nightly")[1].status != "running")


def plan_and_outcome(tick: Tick) -> tuple[RunPlan, RunOutcome]:
    assert tick.plan is not None
    assert tick.outcome is not None, tick.reason
    return tick.plan, tick.outcome


def test_first_run_is_started_and_promoted_by_the_daemon(site: Site) -> None:
    first = site.runs("nightly")[0]
    plan, outcome = plan_and_outcome(first)
    assert (first.kind, first.event, first.attempts) == ("cron", "promoted", 1)
    assert first.scheduled_at % 60 == 0
    assert (plan.parent, outcome.version, outcome.incumbent) == (None, 1, None)
    assert "nothing is in production yet" in outcome.reason
    assert site.registry.history(MODEL)[0].version == 1


def test_overlapping_tick_is_refused_and_recorded(site: Site) -> None:
    (refused,) = [tick for tick in site.history("nightly") if tick.kind == "manual" and tick.run_id is None]
    assert refused.event == "refused"
    assert "another tick of nightly is active" in str(refused.reason)


def test_killed_run_is_continued_by_the_daemon_from_the_first_student(site: Site) -> None:
    second = site.runs("nightly")[1]
    plan, _ = plan_and_outcome(second)
    assert (second.kind, second.status, second.attempts) == ("manual", "finished", 2)
    assert plan.parent == 1
    run = site.run(second)
    assert run.read_config().student.path == str(site.registry.local_path(site.registry.get(MODEL, 1)))
    assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2, 3]
    ledger = Ledger(run.ledger, read_only=True)
    counts = ledger.counts()
    ledger.close()
    assert (counts.lost, counts.duplicated) == (0, 0)


def test_new_prompt_files_are_found_and_trained_on_once(site: Site) -> None:
    plans = [plan_and_outcome(tick)[0] for tick in site.runs("nightly")]
    assert [[Path(file.path).name for file in plan.new_files] for plan in plans] == [
        ["monday.jsonl"],
        ["tuesday.jsonl"],
    ]
    assert [plan.num_prompts for plan in plans] == [32, 64]


def test_all_students_are_evaluated_on_the_frozen_prompts(site: Site) -> None:
    (path,) = (site.folder / "runs" / "nightly").glob("evaluation-*.jsonl")
    frozen = {record.id for record in read_prompt_file(path)}
    versions = site.registry.versions(MODEL)
    assert len(versions) == 2
    assert all(set(version.evaluation.prompts) == frozen for version in versions)


def test_worse_student_is_not_promoted(site: Site) -> None:
    second = site.runs("nightly")[1]
    _, outcome = plan_and_outcome(second)
    assert (second.event, outcome.version) == ("kept", 2)
    assert outcome.difference is not None
    assert outcome.difference < 0
    # The run started from the incumbent, which therefore need not be evaluated again.
    assert (outcome.incumbent, outcome.incumbent_source) == (1, "the run's start")
    aliases = site.registry.aliases(MODEL)
    assert (aliases["production"], aliases["best"]) == (1, 1)


def test_lineage_links_the_students(site: Site) -> None:
    versions = site.registry.versions(MODEL)
    assert [version.lineage.parent for version in versions] == [None, f"{MODEL}@1"]
    for version, tick in zip(versions, site.runs("nightly"), strict=True):
        assert version.config is not None
        assert version.config["name"] == tick.run_id
        assert version.lineage.run_dir == str(site.run(tick).path)
    assert [version.lineage.num_prompts for version in versions] == [32, 64]


def test_history_command_shows_the_recorded_ticks(site: Site) -> None:
    result = site.rlad("history", "nightly", "--json")
    assert result.returncode == 0, result.stderr
    assert [row["run_id"] for row in json.loads(result.stdout) if row["run_id"]] == [
        tick.run_id for tick in site.runs("nightly")
    ]
    text = site.rlad("history", "nightly").stdout
    assert "promoted" in text
    assert "refused" in text
    assert "2 attempts" in text


def test_daemon_log_has_each_tick_and_no_traceback(site: Site) -> None:
    log = (site.folder / "daemon.log").read_text()
    assert log.count("tick_ended schedule=nightly") == 2
    assert "Traceback" not in log
