"""A small site that Prometheus can scrape: a Ray cluster, a teacher service, a schedule's daemon and a run."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import ray
import yaml

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.data.knights_knaves.prompts import generate_prompts
from rlad.data.prompt_files import write_prompt_file

ROOT = Path(__file__).parents[2]
SMOKE, TEACHER = "configs/smoke_cpu.yaml", "configs/teachers/kk_smoke_cpu.yaml"
SERVICE, SCHEDULE = "kk-smoke", "nightly"
_NUM_CPUS = 8
_COMMAND_TIMEOUT_S, _STOP_TIMEOUT_S = 600.0, 120.0
# The scheduled run is short: its figures in the metrics are those of its tick.
_SCHEDULED = ("objective.name=grpo", "teacher=null", "training.steps=1", "evaluation.every_steps=0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """Command that runs in the background.

    Attributes:
        process: Its process.
        log: File with its output.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Check that it is still running.

        Raises:
            RuntimeError: It has ended.
        """
        if (status := self.process.poll()) is not None:
            raise RuntimeError(f"{self.process.args!r} ended with {status}:\n{self.log.read_text()[-4000:]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Addresses and files of a site.

    Attributes:
        folder: Folder of all its files.
        address: Address of the Ray cluster.
        discovery: File in which Ray names its metrics endpoints.
        teacher_port: Port of the teacher service.
        schedule_port: Port of the schedule daemon's metrics.
        token_file: File with the token of the teacher service.
    """

    folder: Path
    address: str
    discovery: Path
    teacher_port: int
    schedule_port: int
    token_file: Path

    def rlad(self, *arguments: str) -> None:
        """Run a command to its end.

        Raises:
            RuntimeError: It failed.
        """
        finished = subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if finished.returncode != 0:
            raise RuntimeError(
                f"rlad {' '.join(arguments)} failed:\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"
            )

    @contextmanager
    def background(self, name: str, *arguments: str) -> Iterator[Background]:
        """Run a command for the duration of the block, and stop it by SIGTERM. Its output is in `NAME.log`."""
        path = self.folder / f"{name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "RLAD_TEACHER_TOKEN": self.token_file.read_text().strip()},
            )
        try:
            yield Background(process=process, log=path)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'schedules.sqlite'}"

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder / "run")

    def steps(self) -> int:
        """Return the number of steps that the run has trained."""
        return len(read_json_lines(self.run.metrics))

    def run_arguments(self, steps: int) -> list[str]:
        """Return the command of a run whose teacher is the service, and that has every figure of the dashboards.

        It has two tasks, a reference policy, an entropy bonus, a price and a budget, without which some figures do not
        exist.
        """
        prompts = generate_prompts(form="compact", people={2: 1}, count=64, split="train", seed=0)
        half = [replace(each, task="puzzles") for each in prompts[32:]]
        write_prompt_file([*prompts[:32], *half], self.folder / "prompts.jsonl")
        config = yaml.safe_load((ROOT / SMOKE).read_text())
        config["prompts"] = {"source": "file", "path": str(self.folder / "prompts.jsonl")}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))
        return [
            *("run", str(self.folder / "run.yaml"), "--address", self.address, "--run-dir", str(self.run.path)),
            "verifiers.puzzles={name: knights_knaves, form: compact}",
            "objective.entropy_bonus.coefficient=0.0001",
            "cost={price_per_cpu_hour: 0.05, budget: {amount: 10}}",
            f"training.steps={steps}",
            "training.max_staleness=1",
            "checkpoints.every_steps=20",
            "evaluation.every_steps=10",
            f"teacher.url=http://127.0.0.1:{self.teacher_port}/{SERVICE}",
            "objective.reference_kl=0.001",
            "reference={dtype: float32, engine: transformers, cpus_per_replica: 0.25}",
        ]

    def kill_rollout_worker(self) -> None:
        """Kill a rollout worker of the run.

        Raises:
            RuntimeError: None is alive.
        """
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "ray::RolloutWorker" in " ".join(process.cmdline()):
                    process.kill()
                    return
        raise RuntimeError("no rollout worker is alive")


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Start a Ray cluster, a teacher service with HTTP and a schedule with its daemon for the duration of the block.

    Args:
        folder: Folder for all files, with a short path: the paths of Ray's sockets have a maximum length.
    """
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(secrets.token_hex(32) + "\n")
    context = ray.init(
        "local", num_cpus=_NUM_CPUS, _temp_dir=str(folder / "ray"), log_to_driver=False, logging_level="ERROR"
    )
    teacher_port, schedule_port = free_ports(2)
    found = Site(
        folder=folder,
        address=context.address_info["gcs_address"],
        discovery=folder / "ray" / "prom_metrics_service_discovery.json",
        teacher_port=teacher_port,
        schedule_port=schedule_port,
        token_file=token_file,
    )
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        http = [f"http.port={teacher_port}", f"http.token_file={token_file}"]
        found.rlad("teacher", "deploy", TEACHER, *http, "--address", found.address)
        registry = ["--registry", str(folder / "registry"), "--directory", str(folder / "runs")]
        store = ["--store", found.store]
        found.rlad("schedule", "add", SCHEDULE, SMOKE, *_SCHEDULED, "--cron", "0 2 1 1 *", *registry, *store)
        found.rlad("schedule", "limit", "local", "--slots", "1", *store)
        stack.enter_context(
            found.background("daemon", "schedule", "serve", "--metrics-port", str(schedule_port), *store)
        )
        yield found


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
