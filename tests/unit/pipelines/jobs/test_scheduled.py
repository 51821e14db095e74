"""Commands of scheduled runs as jobs, on a stand-in for the cluster's job API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.client import RUN_DIR_KEY, Job
from pipelines.jobs.scheduled import RayJobLauncher, read_token
from pipelines.schedules.launcher import RunExit, RunningRun, RunRequest
from rlad.config.schedule import RayJobLauncherConfig, ScheduleConfig
from rlad.errors import ClusterError, JobError


@dataclass(slots=True)
class FakeCluster:
    """Job API that holds jobs in memory."""

    address: str = "http://ray:8265"
    jobs: dict[str, Job] = field(default_factory=dict)
    is_away: bool = False
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    def submit(
        self, job_id: str, *, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        if job_id in self.jobs:
            raise JobError(f"{job_id} is in use")
        self.runtime_env = runtime_env
        self.jobs[job_id] = Job(
            id=job_id,
            status="running",
            message="",
            entrypoint=entrypoint,
            run_dir=metadata[RUN_DIR_KEY],
            settings=metadata["rlad_settings"],
            started_at=1.0,
            ended_at=None,
            exit_code=None,
            is_submitted=True,
        )

    def find(self, job_id: str) -> Job | None:
        if self.is_away:
            raise ClusterError("no Ray cluster answers")
        return self.jobs.get(job_id)

    def all(self) -> list[Job]:
        return list(self.jobs.values())

    def logs(self, job_id: str) -> str:
        return "a step\nstopped: on request\nerror: no room\n"

    def stop(self, job_id: str) -> bool:
        self.end("stopped", None)
        return True

    def end(self, status: str, exit_code: int | None) -> None:
        self.jobs = {key: replace(job, status=status, exit_code=exit_code) for key, job in self.jobs.items()}


def started(tmp_path: Path, **settings: object) -> tuple[FakeCluster, RayJobLauncher, RunRequest, RunningRun]:
    launcher = {"kind": "ray_job", "address": "http://ray:8265", "upload": False, **settings}
    places = {"working_dir": str(tmp_path), "directory": str(tmp_path / "s"), "registry": str(tmp_path / "r")}
    fields = {"name": "n", "run": {}, "cron": "0 2 * * *", "model": "kk", "launcher": launcher, "stop_grace_s": 7}
    cluster = FakeCluster()
    found = RayJobLauncher(ScheduleConfig.model_validate({**fields, **places}))
    found.__dict__["client"] = cluster
    run_dir, log = tmp_path / "s" / "runs" / "n-1", tmp_path / "s" / "logs" / "n-1.log"
    arguments = ("run", "c.yaml", "--run-dir", str(run_dir), "--resume", "--address", "auto")
    request = RunRequest(name="n-1", output=run_dir, arguments=arguments, working_dir=tmp_path, log=log)
    return cluster, found, request, found.start(request)


def ended(cluster: FakeCluster, run: RunningRun, status: str, exit_code: int | None) -> RunExit | None:
    cluster.end(status, exit_code)
    return run.wait(0)


def test_active_job_of_a_run_is_found_and_not_submitted_again(tmp_path: Path) -> None:
    cluster, launcher, request, run = started(tmp_path, python="/opt/python", variables={"A": "b"})
    again = launcher.start(request)
    assert again.job == run.job
    (job,) = cluster.all()
    assert job.id.startswith("n-1-")
    assert job.entrypoint == f"/opt/python -m pipelines run c.yaml --run-dir {job.run_dir} --resume --address auto"
    assert cluster.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "7"
    assert cluster.runtime_env["env_vars"]["A"] == "b"
    assert "working_dir" not in cluster.runtime_env
    cluster.end("failed", 1)
    assert launcher.start(request).job == f"{run.job}-2"


def test_uploaded_files_exclude_those_of_the_schedule(tmp_path: Path) -> None:
    for name in ("verifier.py", "s/student.bin", "r/model.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    cluster, *_ = started(tmp_path, upload=True)
    assert str(cluster.runtime_env["working_dir"]).endswith("working_dir.zip")


def test_end_of_a_job_gives_its_status_and_reason_and_its_log_is_kept(tmp_path: Path) -> None:
    cluster, _, request, run = started(tmp_path)
    assert run.wait(0) is None
    cluster, launcher, request, _ = started(tmp_path)
    job = next(iter(cluster.jobs))

    def end(status: str, exit_code: int | None) -> RunExit | None:
        return ended(cluster, launcher.adopt(request, job), status, exit_code)

    assert end("succeeded", 0) == RunExit(status=0, reason=None)
    assert end("failed", 1) == RunExit(status=1, reason=f"job {job} ended with status 1: error: no room")
    assert end("stopped", 90) == RunExit(status=90, reason=f"job {job} ended with status 90: stopped: on request")
    assert end("stopped", None) == RunExit(status=90, reason=f"job {job} was stopped at the cluster")
    signalled = end("stopped", 143)  # by the node, not on request: the run is continued
    assert signalled is not None
    assert signalled.status == 143
    assert "a step" in request.log.read_text()


def test_job_that_the_cluster_does_not_know_is_lost(tmp_path: Path) -> None:
    cluster, _, _, run = started(tmp_path)
    cluster.jobs.clear()
    lost = run.wait(0)
    assert lost is not None
    assert lost.status == 1
    assert "is lost: its head was replaced" in str(lost.reason)


def test_silent_cluster_is_tolerated_until_the_limit(tmp_path: Path) -> None:
    cluster, launcher, request, _ = started(tmp_path, away_s=600)
    cluster.is_away = True
    job = next(iter(cluster.jobs))
    assert launcher.adopt(request, job).wait(0) is None
    cluster, launcher, request, _ = started(tmp_path, away_s=1e-9)
    cluster.is_away = True
    lost = launcher.adopt(request, job).wait(0)
    assert lost is not None
    assert "is lost: no Ray cluster answers" in str(lost.reason)


def test_stop_ends_the_job(tmp_path: Path) -> None:
    cluster, _, _, run = started(tmp_path)
    run.stop(1)
    assert [job.status for job in cluster.all()] == ["stopped"]


def test_token_is_read_from_the_variable_or_file_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(**token: str) -> RayJobLauncherConfig:
        return RayJobLauncherConfig.model_validate({"address": "http://ray:8265", **token})

    assert read_token(settings()) is None
    monkeypatch.setenv("CLUSTER_TOKEN", "abc\n")
    assert read_token(settings(token_env="CLUSTER_TOKEN")) == "abc"
    monkeypatch.delenv("CLUSTER_TOKEN")
    with pytest.raises(ClusterError, match="names CLUSTER_TOKEN, which is not set"):
        read_token(settings(token_env="CLUSTER_TOKEN"))
    (tmp_path / "token").write_text("def\n")
    assert read_token(settings(token_file=str(tmp_path / "token"))) == "def"
    with pytest.raises(ClusterError, match="cannot be read"):
        read_token(settings(token_file=str(tmp_path / "none")))
