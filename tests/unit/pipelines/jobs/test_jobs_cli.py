"""Command line of `rlad submit`, `list`, `status`, `logs` and `stop`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli import jobs as jobs_cli

from .dashboard import Dashboard


def test_programs_that_were_not_submitted_are_listed_while_active_or_as_runs(dashboard: Dashboard) -> None:
    joined = {"type": "DRIVER", "submission_id": None}
    dashboard.add("01", **joined, status="SUCCEEDED", entrypoint="rlad status runs/a")
    dashboard.add("02", **joined, entrypoint="python notebook.py")
    dashboard.add("03", **joined, status="FAILED", entrypoint="rlad run configs/a.yaml --run-dir /shared/runs/a")
    for job_id, job in dashboard.jobs.items():
        job["job_id"] = job_id
    listed = CliRunner().invoke(jobs_cli.app, ["list", "--json", "--address", dashboard.address])
    assert [job["id"] for job in json.loads(listed.stdout)] == ["02", "03"]


def test_commands_submit_list_show_and_stop(dashboard: Dashboard, project: Path) -> None:
    def rlad(*arguments: str) -> Result:
        return CliRunner().invoke(jobs_cli.app, [*arguments, "--address", dashboard.address])

    submitted = rlad("submit", "configs/smoke.yaml", "--run-dir", "runs/a")
    assert submitted.exit_code == 0, submitted.output
    (job_id,) = dashboard.jobs
    assert f"job {job_id} submitted to {dashboard.address} (1 files" in submitted.stdout
    assert f"run directory {project}/runs/a (must be on storage that all nodes mount)" in submitted.stdout
    assert [job["id"] for job in json.loads(rlad("list", "--json").stdout)] == [job_id]
    assert json.loads(rlad("status", job_id, "--json").stdout)["run_dir"] == f"{project}/runs/a"
    assert rlad("stop", "runs/a").stdout == f"job {job_id} stopped\n"
    assert "knows no job nothing" in str(rlad("logs", "nothing").exception)


def test_submit_wait_returns_exit_status_and_error(dashboard: Dashboard, project: Path) -> None:
    dashboard.outcome = ("FAILED", 3, "starting ...\nerror: too few CPUs [see above]\n")
    arguments = [
        "submit",
        "configs/smoke.yaml",
        "--run-dir",
        "runs/a",
        "--submission-id",
        "a",
        "--wait",
        "--address",
        dashboard.address,
    ]
    failed = CliRunner().invoke(jobs_cli.app, arguments)
    assert failed.exit_code == 3
    assert failed.stderr == "error: job a failed: too few CPUs [see above]\n"
    assert (
        CliRunner().invoke(jobs_cli.app, ["logs", "a", "--address", dashboard.address]).stdout
        == "starting ...\nerror: too few CPUs [see above]\n"
    )
    dashboard.outcome = ("SUCCEEDED", 0, "")
    succeeded = CliRunner().invoke(jobs_cli.app, arguments)
    assert succeeded.exit_code == 0
    assert succeeded.stdout.endswith("job a-2 succeeded\n")
