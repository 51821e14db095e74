"""Runs as jobs of a real two-node cluster with token authentication, by `rlad submit` and by `ray job submit`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from pipelines.run.directory import RunDirectory, read_json_lines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
RLAD = [sys.executable, "-m", "pipelines"]
SMOKE = "configs/smoke_cpu.yaml"
# Without a teacher, which every run would start.
SHORT = ["objective.name=grpo", "teacher=null", "checkpoints.every_steps=1"]
SHORT += ["evaluation.every_steps=0", "evaluation.prompts.count=4"]
STEPS = 16
DEADLINE_S = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Two-node Ray cluster.

    Attributes:
        address: Address of the dashboard.
        environment: Environment variables of a client with the token.
        without_token: Environment variables of a client without the token.
    """

    address: str
    environment: Mapping[str, str]
    without_token: Mapping[str, str]

    def submit(self, *arguments: str | Path, without_token: bool = False) -> subprocess.CompletedProcess[str]:
        return self.call(
            [*RLAD, "submit", SMOKE, *SHORT, "--address", self.address, *map(str, arguments)],
            without_token=without_token,
        )

    def rlad(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call([*RLAD, *arguments, "--address", self.address])

    def ray_job_submit(self, *words: str | Path, without_token: bool = False) -> subprocess.CompletedProcess[str]:
        command = [
            RAY,
            "job",
            "submit",
            "--address",
            self.address,
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            "pipelines",
            "run",
            SMOKE,
            *SHORT,
        ]
        return self.call([*command, "--address", "auto", *map(str, words)], without_token=without_token)

    def call(self, command: list[str], *, without_token: bool = False) -> subprocess.CompletedProcess[str]:
        environment = dict(self.without_token if without_token else self.environment)
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=DEADLINE_S, check=False
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="rlad-"))  # short: the paths of Ray's sockets have a maximum length
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    (folder / "home").mkdir()
    without_token = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "PYTEST"))} | {
        "HOME": str(folder / "home")
    }
    environment = {
        **without_token,
        "HOME": os.environ["HOME"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    # The nodes have python on their PATH, and of this project only the files that come with a job.
    node_variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    nodes_environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | node_variables
    gcs, dashboard, client, *agents = _free_ports(5)
    head = [
        "--head",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={client}",
    ]
    nodes: list[subprocess.Popen[bytes]] = []

    def start(options: list[str], cpus: int) -> None:
        command = [
            RAY,
            "start",
            "--block",
            f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={agents[len(nodes)]}",
            *options,
        ]
        options_of_all = {
            "cwd": folder,
            "env": nodes_environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        nodes.append(subprocess.Popen([*command, "--min-worker-port=0", "--max-worker-port=0"], **options_of_all))

    address = f"http://127.0.0.1:{dashboard}"
    try:
        start([*head, f"--temp-dir={folder}/ray"], cpus=1)
        _wait_for(lambda: _nodes_alive(address, token.read_text()) == 1, "the head")
        start([f"--address=127.0.0.1:{gcs}"], cpus=3)
        _wait_for(lambda: _nodes_alive(address, token.read_text()) == 2, "the second node")
        yield RayCluster(address=address, environment=environment, without_token=without_token)
    finally:
        processes = [
            process for node in nodes for process in (*psutil.Process(node.pid).children(recursive=True), node)
        ]
        for process in processes:
            if psutil.pid_exists(process.pid):
                process.kill()
        for node in nodes:
            node.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [int(free.getsockname()[1]) for free in sockets]
    finally:
        for free in sockets:
            free.close()


def _nodes_alive(address: str, token: str) -> int:
    """Return the number of live nodes, as reported by the dashboard."""
    try:
        answer = requests.get(f"{address}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=5)
        return sum(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"]) if answer.ok else 0
    except requests.RequestException:
        return 0


def _wait_for(claim: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.3)


def test_submission_without_the_token_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    refused = cluster.submit("--run-dir", tmp_path / "run", without_token=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        f"error: the cluster at {cluster.address} refused the request: the token is missing; "
        "set the cluster's token in RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN"
    ]
    plain = cluster.ray_job_submit("--run-dir", tmp_path / "run", without_token=True)
    assert plain.returncode != 0
    assert "Authentication required: Unauthorized: Missing authentication token" in plain.stderr
    listed = cluster.rlad("list", "--json")
    assert json.loads(listed.stdout) == [], "no job was started"


def test_submitter_of_a_failing_run_gets_the_error(cluster: RayCluster, tmp_path: Path) -> None:
    failed = cluster.submit("student.path=/nowhere", "--run-dir", tmp_path / "run", "--wait")
    assert failed.returncode == 1
    (message,) = failed.stderr.splitlines()
    assert message.startswith("error: job smoke-cpu-")
    assert " failed: no model at '/nowhere': expected a Hugging Face model directory" in message
    vanishing = cluster.ray_job_submit("--run-dir", "runs/a")
    assert vanishing.returncode != 0
    assert "error: run directory runs/a is inside the job's working directory" in vanishing.stdout


def test_submitted_run_is_found_stopped_and_continued(cluster: RayCluster, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    settings = [f"training.steps={STEPS}", "--run-dir", str(run.path)]
    submitted = cluster.submit(*settings)
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.split()[1]
    assert f"run directory {run.path} (must be on storage that all nodes mount)" in submitted.stdout
    assert f"job {job_id} already runs this" in cluster.submit(*settings).stdout
    _wait_for(lambda: len(read_json_lines(run.metrics)) >= 2, "first steps")

    stopped = cluster.rlad("stop", job_id)
    assert (stopped.returncode, stopped.stdout) == (0, f"job {job_id} stopped\n"), stopped.stderr
    log = cluster.rlad("logs", job_id).stdout
    assert f"step 2/{STEPS}" in log
    assert "interrupted: checkpoints are kept" in log
    assert "Traceback" not in log
    assert "SIGTERM received" not in log, "Ray's own handler would abort the run before its pools are shut down"
    assert "\x1b" not in log, "a log must not contain terminal escapes"
    steps_before = len(read_json_lines(run.metrics))
    assert 2 <= steps_before < STEPS

    continued = cluster.submit(*settings, "--follow")
    assert continued.returncode == 0, continued.stderr
    assert f"job {job_id}-2 submitted" in continued.stdout
    assert f"step {STEPS}/{STEPS}" in continued.stdout
    assert f"step 1/{STEPS}" not in continued.stdout
    assert continued.stdout.endswith(f"job {job_id}-2 succeeded\n")
    assert (run.export / "model.safetensors").is_file()
    ledger = json.loads(cluster.call([*RLAD, "ledger", str(run.path), "--json"]).stdout)
    assert (ledger["lost"], ledger["duplicated"], ledger["trained_steps"]) == (0, 0, STEPS)
    statuses = {
        job["id"]: job["status"]
        for job in json.loads(cluster.rlad("list", "--json").stdout)
        if job["run_dir"] == str(run.path)
    }
    assert statuses == {job_id: "stopped", f"{job_id}-2": "succeeded"}


@pytest.mark.slow
def test_plain_ray_job_submit_finishes(cluster: RayCluster, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    plain = cluster.ray_job_submit("training.steps=1", "--run-dir", run.path)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert (run.export / "model.safetensors").is_file()
    assert cluster.call([*RLAD, "status", str(run.path)]).stdout == f"{run.path}: finished, 1 of 1 steps\n"
    assert cluster.rlad("logs", str(run.path)).stdout.rstrip().endswith(f"report:  {run.report}"), (
        "the job must be found by its run directory"
    )
