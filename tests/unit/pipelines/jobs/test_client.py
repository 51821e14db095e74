"""Client of the job API: finding jobs, failures, addresses and tokens, waiting."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pipelines.cluster.job_environment import require_lasting
from pipelines.jobs.client import Job, JobClient
from pipelines.jobs.submission import (
    exit_code,
    failure,
    find_job,
)
from pipelines.run.status import STOPPED_EXIT_CODE
from rlad.errors import ClusterError, JobError, RunDirectoryError

from .dashboard import Dashboard


def ended_job(*, status: str = "failed", exit_code: int | None = 1, message: str = "") -> Job:
    return Job(
        id="smoke-1",
        status=status,
        message=message,
        entrypoint="true",
        run_dir=None,
        settings=None,
        started_at=0.0,
        ended_at=1.0,
        exit_code=exit_code,
        is_submitted=True,
    )


def test_job_is_found_by_id_or_as_the_latest_of_a_run_directory(dashboard: Dashboard) -> None:
    dashboard.add("one", status="FAILED", metadata={"rlad_run_dir": "/shared/a"})
    dashboard.add(
        "raysubmit_x", status="FAILED", entrypoint="python -m pipelines run c.yaml --run-dir=/shared/a --resume"
    )
    dashboard.add("relative", entrypoint="python -m pipelines run c.yaml --run-dir runs/a")
    client = JobClient(dashboard.address)
    assert find_job(client, "one").id == "one"
    assert find_job(client, "/shared/a").id == "raysubmit_x"
    assert find_job(client, "relative").run_dir is None
    with pytest.raises(JobError, match="knows no job two"):
        find_job(client, "two")
    assert client.find("two") is None


@pytest.mark.parametrize(
    ("exit_code", "status"),
    [
        (STOPPED_EXIT_CODE, "stopped"),
        (130, "stopped"),
        (143, "stopped"),
        (1, "failed"),
        (137, "failed"),
        (None, "failed"),
    ],
)
def test_stopped_run_is_no_failed_job(dashboard: Dashboard, exit_code: int | None, status: str) -> None:
    dashboard.add("one")
    dashboard.end("one", "FAILED", exit_code=exit_code)
    job = JobClient(dashboard.address).find("one")
    assert job is not None
    assert (job.status, job.exit_code) == (status, exit_code)


def test_failure_shows_the_error_of_the_run() -> None:
    log = (
        "error: an older one\nstep 1/6\nerror: configs/a.yaml:\n  seed: required\n  name: required\nWebSocket closed\n"
    )
    assert failure(ended_job(), log) == "job smoke-1 failed: configs/a.yaml:\n  seed: required\n  name: required"
    killed = failure(ended_job(exit_code=-9, message="Job entrypoint command failed"), "step 1/6\nstep 2/6\n")
    assert (
        killed == "job smoke-1 failed (exit code -9) without an error message; its last lines:\n  step 1/6\n  step 2/6"
    )
    assert "Runtime env setup failed" in failure(ended_job(exit_code=None, message="Runtime env setup failed"), "")
    assert (
        failure(ended_job(status="stopped", exit_code=None), "error: x")
        == "job smoke-1 was stopped; submit it again to continue the run"
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("succeeded", 0, 0), ("failed", 3, 3), ("failed", -9, 137), ("failed", None, 1), ("stopped", None, 1)],
)
def test_exit_code_follows_shell_conventions(status: str, code: int | None, expected: int) -> None:
    assert exit_code(ended_job(status=status, exit_code=code)) == expected


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, "Unauthorized: Missing authentication token"), "refused the request: the token is missing"),
        ((403, "Forbidden: Invalid authentication token"), "refused the request: the token is wrong"),
        ((500, "out of order"), "no Ray cluster answers at"),
    ],
)
def test_refused_request_gives_a_one_line_error(refusal: tuple[int, str], message: str, dashboard: Dashboard) -> None:
    dashboard.refusal = refusal
    with pytest.raises(ClusterError, match=message) as raised:
        JobClient(dashboard.address)
    assert "\n" not in str(raised.value)


def test_given_address_overrides_the_environment(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert JobClient(dashboard.address).all() == []
    assert JobClient(dashboard.address.removeprefix("http://")).address == dashboard.address
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127.0.0.1:1"):
        JobClient()


def test_address_without_a_listener_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}: .*refused"):
            JobClient(address)


def test_wait_returns_the_ended_job_or_times_out(dashboard: Dashboard) -> None:
    dashboard.add("a")
    client = JobClient(dashboard.address)
    with pytest.raises(TimeoutError):
        client.wait("a", deadline_s=0.2)
    dashboard.end("a", "FAILED", exit_code=2)
    assert client.wait("a", deadline_s=10).exit_code == 2
    del dashboard.jobs["a"]
    with pytest.raises(JobError, match="no longer knows job a"):
        client.wait("a", deadline_s=10)


def test_run_directory_inside_the_uploaded_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_lasting(Path("runs/a"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": {}}, "metadata": {}}))
    require_lasting(Path("runs/a"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    with pytest.raises(RunDirectoryError, match="runs/a is inside the job's working directory, which Ray deletes"):
        require_lasting(Path("runs/a"))
    require_lasting(tmp_path.parent / "shared" / "a")
