"""Scheduled runs as jobs of a real Ray cluster with a token: adoption after a killed ticker, and a replaced head.

The jobs execute a stand-in for `rlad run`, which counts its starts and ends when a file appears.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests

from pipelines.jobs.client import JobClient
from pipelines.jobs.scheduled import RayJobLauncher
from pipelines.schedules.adding import add_schedule
from pipelines.schedules.execution import Ticker
from pipelines.schedules.records import Tick
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
from rlad.config import load_run_config
from rlad.config.schedule import ScheduleConfig
from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN_ENV = "TICKER_CLUSTER_TOKEN"
STAND_IN = """
import sys, time
from pathlib import Path
from pipelines.schedules.launcher import RunRequest
from tests.unit.pipelines.schedules.conftest import FakeLauncher
folder, *arguments = sys.argv[1:]
with Path(folder, "starts").open("a") as starts:
    starts.write(arguments[arguments.index("--run-dir") + 1] + "\\n")
print("a step", flush=True)
while not Path(folder, "may-end").exists():
    time.sleep(0.1)
FakeLauncher().write_run(
    RunRequest(name="run", output=Path(), arguments=tuple(arguments), working_dir=Path(), log=Path())
)
"""
# Replaces `python -m pipelines` only: Ray itself uses the interpreter, too.
PYTHON = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = pipelines ]; then
    shift 2
    PYTHONPATH={root} exec {python} {folder}/stand_in.py {folder} "$@"
fi
exec {python} "$@"
"""


@dataclass(slots=True)
class Head:
    """Head of a one-node cluster that can be killed and started again at the same address."""

    folder: Path
    token: str
    ports: list[int]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self) -> None:
        gcs, dashboard, client, agent = self.ports
        options = [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        options += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--num-cpus=2"]
        options += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder}/ray"]
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")} | own
        with (self.folder / "head.log").open("ab") as log:
            command = [RAY, "start", "--head", "--block", *options]
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        wait_for(self.is_up, "the head", 120)

    def is_up(self) -> bool:
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            return requests.get(f"{self.address}/api/version", headers=headers, timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        assert self.process is not None
        processes = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in processes:
            if psutil.pid_exists(process.pid):
                process.kill()
        self.process.wait(timeout=30)


def wait_for(claim: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rlad-"))  # short: the paths of Ray's sockets have a maximum length
    sockets = [socket.socket() for _ in range(4)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [int(free.getsockname()[1]) for free in sockets]
    for free in sockets:
        free.close()
    head = Head(folder=folder, token=secrets.token_hex(32), ports=ports)
    head.start()
    yield head
    head.kill()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Schedule `nightly`, whose runs are jobs of the cluster."""

    folder: Path
    head: Head
    store: ScheduleStore

    def add(self, name: str, **changes: object) -> None:
        run = load_run_config(ROOT / "configs" / "smoke_cpu.yaml", ["student.path=start"]).model_dump(mode="json")
        run["evaluation"]["prompts"] = {"source": "file", "path": "evaluation.jsonl"}
        launcher = {
            "kind": "ray_job",
            "address": self.head.address,
            "token_env": TOKEN_ENV,
            "python": str(self.folder / "python"),
            "upload": False,
            "away_s": 60,
        }
        found = {
            "name": name,
            "run": run,
            "cron": "0 2 * * *",
            "working_dir": str(self.folder),
            "directory": str(self.folder / name),
            "registry": str(self.folder / "registry"),
            "model": "kk",
            "retry_wait_s": 1,
            "lease_s": 4,
            "launcher": launcher,
        }
        add_schedule(self.store, ScheduleConfig.model_validate({**found, **changes}))

    @property
    def starts(self) -> list[str]:
        """Names of the runs that the stand-in was started for, in order."""
        file = self.folder / "starts"
        return [Path(line).name for line in file.read_text().splitlines()] if file.exists() else []

    @contextmanager
    def ticking(self, name: str = "nightly") -> Iterator[list[Tick]]:
        """Continue the schedule's unfinished run in a thread, and yield the list of its ended ticks."""
        ended: list[Tick] = []
        ticker = Ticker(store=self.store, job_launcher=RayJobLauncher)
        thread = threading.Thread(target=lambda: ended.extend(tick(name, ticker)))
        thread.start()
        try:
            yield ended
        finally:
            (self.folder / "may-end").touch()
            thread.join(180)
            assert not thread.is_alive()

    def ticker_process(self, name: str = "nightly") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipelines", "schedule", "run-now", name, "--store"]
        command.append(f"sqlite:///{self.folder / 'schedules.sqlite'}")
        return subprocess.Popen(command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def site(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv(TOKEN_ENV, head.token)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "python").write_text(PYTHON.format(root=ROOT, python=sys.executable, folder=tmp_path))
    (tmp_path / "python").chmod(0o755)
    prompts = [
        PromptRecord(id=f"e{index}", prompt=f"A:{index};", task="knights_knaves", answer="T", metadata={"people": 2})
        for index in range(20)
    ]
    write_prompt_file(prompts, tmp_path / "evaluation.jsonl")
    store = ScheduleStore(f"sqlite:///{tmp_path / 'schedules.sqlite'}")
    site = Site(folder=tmp_path, head=head, store=store)
    site.add("nightly")
    yield site
    store.close()


def test_job_of_a_killed_ticker_is_adopted_without_a_further_attempt(site: Site) -> None:
    with site.ticker_process() as first:
        wait_for(lambda: len(site.starts) == 1, "start of the job")
        wait_for(lambda: site.store.history("nightly")[0].job is not None, "record of the job")
        first.send_signal(signal.SIGKILL)
    (left,) = site.store.unfinished("nightly")
    assert left.job is not None
    assert left.job.id.startswith(f"{left.run_id}-")
    with site.ticking() as ended:
        wait_for(lambda: site.store.schedule("nightly").lease_owner is not None, "second ticker")
        (site.folder / "may-end").touch()
    assert [(found.event, found.attempts, found.job) for found in ended] == [("promoted", 1, left.job)]
    assert site.starts == [left.run_id]
    assert ended[0].spent_s >= 1
    jobs = JobClient(site.head.address, token=site.head.token).all()
    assert [(job.id, job.status) for job in jobs if job.id.startswith(str(left.run_id))] == [(left.job.id, "succeeded")]
    assert "a step" in (site.folder / "nightly" / "logs" / f"{left.run_id}.log").read_text()


def test_clean_stop_of_a_ticker_leaves_its_job_running(site: Site) -> None:
    with site.ticker_process() as first:
        wait_for(lambda: len(site.starts) == 1, "start of the job")
        wait_for(lambda: site.store.history("nightly")[0].job is not None, "record of the job")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 1
    with site.ticking() as ended:
        (site.folder / "may-end").touch()
    assert [(found.event, found.attempts) for found in ended] == [("promoted", 1)]
    assert len(site.starts) == 1


def test_job_of_a_killed_head_is_submitted_again_as_the_next_attempt(site: Site) -> None:
    with site.ticker_process() as ticker:
        wait_for(lambda: len(site.starts) == 1, "start of the job")
        site.head.kill()
        site.head.start()
        wait_for(lambda: len(site.starts) == 2, "second start", 120)
        (site.folder / "may-end").touch()
        assert ticker.wait(120) == 0
    (ended,) = site.store.history("nightly")
    assert (ended.event, ended.attempts) == ("promoted", 2)
    assert site.starts == [ended.run_id] * 2
