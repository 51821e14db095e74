"""Submission of runs as jobs: ids, repeated submissions, and checks before the upload."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from pathlib import Path

import pytest
import yaml

from pipelines.jobs.client import Job, JobClient
from pipelines.jobs.submission import (
    JobEnvironment,
    next_id,
    parse_variables,
    read_submission,
    submit,
)
from pipelines.jobs.working_directory import WorkingDirectory, read_working_directory
from rlad.errors import ConfigError, JobError

from .dashboard import Dashboard

ROOT = Path(__file__).parents[4]
PLAIN = JobEnvironment(variables={}, packages=(), python=None)


def read_project(project: Path) -> WorkingDirectory:
    return read_working_directory(project)


def submit_run(
    dashboard: Dashboard, project: Path, *overrides: str, run_dir: str = "/shared/run", job_id: str | None = None
) -> tuple[Job, bool]:
    directory = read_project(project)
    submission = read_submission(Path("configs/smoke.yaml"), overrides, run_dir=Path(run_dir), directory=directory)
    return submit(JobClient(dashboard.address), submission, directory, PLAIN, job_id=job_id)


def test_job_receives_files_and_command_but_no_secret(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    job, is_new = submit_run(dashboard, project, "training.steps=2", "objective.alpha=0.3")
    assert is_new
    (content,) = dashboard.packages.values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["configs/smoke.yaml"]
    words = shlex.split(dashboard.jobs[job.id]["entrypoint"])
    assert words[:5] == ["python", "-m", "pipelines", "run", "configs/smoke.yaml"]
    assert words[5:] == [
        "training.steps=2",
        "objective.alpha=0.3",
        "cluster.address=auto",
        "--run-dir",
        "/shared/run",
        "--resume",
    ]
    environment = dashboard.jobs[job.id]["runtime_env"]
    assert environment.keys() <= {"working_dir", "env_vars", "_ray_commit"}
    assert environment["env_vars"]["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["env_vars"]["HF_HUB_OFFLINE"] in ("0", "1")
    assert "0123456789abcdef0123456789abcdef" not in json.dumps(dashboard.jobs)


def test_run_submitted_twice_runs_once(dashboard: Dashboard, project: Path) -> None:
    first, is_new = submit_run(dashboard, project)
    again, is_new_again = submit_run(dashboard, project)
    assert (is_new, is_new_again) == (True, False)
    assert again.id == first.id
    other, _ = submit_run(dashboard, project, run_dir="/shared/other")
    assert len(dashboard.jobs) == 2
    assert other.id != first.id


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_ended_job_is_followed_by_a_job_that_continues_the_run(
    status: str, dashboard: Dashboard, project: Path
) -> None:
    first, _ = submit_run(dashboard, project)
    dashboard.end(first.id, status)
    second, is_new = submit_run(dashboard, project)
    assert (second.id, is_new) == (f"{first.id}-2", True)
    assert dashboard.jobs[second.id]["entrypoint"].endswith("--resume")
    dashboard.end(second.id, status)
    assert submit_run(dashboard, project)[0].id == f"{first.id}-3"


def test_job_id_depends_on_the_run_directory_only(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = read_project(project)
    relative = read_submission(Path("configs/smoke.yaml"), (), run_dir=Path("runs/a"), directory=directory)
    monkeypatch.chdir(project / "configs")
    elsewhere = read_submission(
        project / "configs" / "smoke.yaml", (), run_dir=project / "configs" / ".." / "runs" / "a", directory=directory
    )
    assert relative == elsewhere
    assert relative.run_dir == project / "runs" / "a"
    assert relative.job_id.startswith("smoke-cpu-")


def test_active_job_with_other_settings_is_refused(dashboard: Dashboard, project: Path) -> None:
    first, _ = submit_run(dashboard, project)
    with pytest.raises(JobError, match=f"job {first.id} runs with other settings in /shared/run"):
        submit_run(dashboard, project, "seed=7")
    assert submit_run(dashboard, project, "cluster.start_timeout_s=99")[0].id == first.id, (
        "cluster settings are not settings of the run"
    )


def test_given_job_id_is_used_and_continued(dashboard: Dashboard, project: Path) -> None:
    first, _ = submit_run(dashboard, project, job_id="nightly-1")
    assert first.id == "nightly-1"
    assert submit_run(dashboard, project, job_id="nightly-1") == (first, False)
    with pytest.raises(JobError, match="job nightly-1 already exists with run directory /shared/run"):
        submit_run(dashboard, project, run_dir="/shared/other", job_id="nightly-1")
    dashboard.end("nightly-1", "FAILED")
    assert submit_run(dashboard, project, job_id="nightly-1")[0].id == "nightly-1-2"


def test_submitter_that_loses_a_race_gets_the_other_job(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = read_project(project)
    submission = read_submission(Path("configs/smoke.yaml"), (), run_dir=Path("/shared/run"), directory=directory)
    client, other = JobClient(dashboard.address), JobClient(dashboard.address)
    # The other submitter submits after this one has listed the jobs and before it sends its request.
    pack = WorkingDirectory.pack

    def overtaken(self: WorkingDirectory, target: Path) -> None:
        monkeypatch.setattr(WorkingDirectory, "pack", pack)
        submit(other, submission, directory, PLAIN)
        pack(self, target)

    monkeypatch.setattr(WorkingDirectory, "pack", overtaken)
    job, is_new = submit(client, submission, directory, PLAIN)
    assert (job.id, is_new) == (submission.job_id, False)
    assert len(dashboard.jobs) == 1


def test_driver_of_a_submitted_run_is_started_again_as_often_as_asked(project: Path) -> None:
    directory = read_project(project)
    entrypoints = [
        read_submission(
            Path("configs/smoke.yaml"), (), run_dir=Path("/shared/run"), directory=directory, max_restarts=restarts
        ).entrypoint
        for restarts in (0, 3)
    ]
    assert entrypoints[1] == f"{entrypoints[0]} --max-restarts 3"


def test_next_id_follows_the_highest_suffix() -> None:
    assert next_id("a-1", []) == "a-1"
    assert next_id("a-1", ["a-1"]) == "a-1-2"
    assert next_id("a-1", ["a-1-9", "a-1-10", "a-12", "a-1-x", "b-a-1"]) == "a-1-11"
    assert next_id("a.1", ["aX1"]) == "a.1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("student.path=./models/student",), "student.path: ./models/student is relative and not uploaded"),
        (("teacher.path=a/model/here",), "teacher: path: a/model/here is relative"),
        (("teacher.path=ignored/model",), "teacher: path: ignored/model is relative"),
        (("objective.alhpa=0.3",), "did you mean `alpha`"),
    ],
)
def test_relative_model_path_is_refused_before_the_upload(
    overrides: tuple[str, ...], message: str, project: Path
) -> None:
    (project / "ignored" / "model").mkdir(parents=True)
    (project / ".gitignore").write_text("ignored/\n")
    with pytest.raises(ConfigError, match=message):
        read_submission(Path("configs/smoke.yaml"), overrides, run_dir=None, directory=read_project(project))


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B@main", "s3://bucket/model", "registry:kk@3"])
def test_models_that_nodes_download_need_no_upload(model: str, project: Path) -> None:
    submission = read_submission(
        Path("configs/smoke.yaml"), (f"teacher.path={model}",), run_dir=None, directory=read_project(project)
    )
    assert f"teacher.path={model}" in submission.entrypoint


def test_prompt_file_is_uploaded_or_absolute(project: Path) -> None:
    config = project / "configs" / "smoke.yaml"
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "prompts": {"source": "file", "path": "data/p.jsonl"}}))
    with pytest.raises(ConfigError, match=r"prompts.path: data/p.jsonl is relative and not uploaded"):
        read_submission(config, (), run_dir=None, directory=read_project(project))
    assert (
        "prompts.path=/shared/p.jsonl"
        in read_submission(
            config, ["prompts.path=/shared/p.jsonl"], run_dir=None, directory=read_project(project)
        ).entrypoint
    )
    (project / "data").mkdir()
    (project / "data" / "p.jsonl").write_text("{}")
    read_submission(config, (), run_dir=None, directory=read_project(project))


def test_local_files_of_a_mixture_are_uploaded_and_remote_ones_need_not_be(project: Path) -> None:
    config = project / "configs" / "smoke.yaml"
    settings = yaml.safe_load(config.read_text())
    paths = {"far": "s3://bucket/rows.jsonl", "near": "data/p.jsonl"}
    parts = {name: {"prompts": {"source": "file", "path": path}} for name, path in paths.items()}
    config.write_text(yaml.safe_dump({**settings, "prompts": {"source": "mixture", "parts": parts}}))
    with pytest.raises(ConfigError, match=r"prompts.parts.near.prompts.path: data/p.jsonl is relative and not uploa"):
        read_submission(config, (), run_dir=None, directory=read_project(project))
    (project / "data").mkdir()
    (project / "data" / "p.jsonl").write_text("{}")
    read_submission(config, (), run_dir=None, directory=read_project(project))


def test_configuration_outside_the_working_directory_needs_an_absolute_path(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text((project / "configs" / "smoke.yaml").read_text())
    directory = read_project(project)
    with pytest.raises(ConfigError, match=r"\.\./outside.yaml is outside the working directory"):
        read_submission(Path("../outside.yaml"), (), run_dir=None, directory=directory)
    assert str(outside) in read_submission(outside, (), run_dir=None, directory=directory).entrypoint
    (project / ".gitignore").write_text("configs/\n")
    with pytest.raises(ConfigError, match="is excluded from the upload"):
        read_submission(Path("configs/smoke.yaml"), (), run_dir=None, directory=read_project(project))


def test_command_depends_on_the_kind_of_configuration(project: Path) -> None:
    directory = read_working_directory(ROOT)
    offline = read_submission(ROOT / "configs" / "offline_kk_cpu.yaml", (), run_dir=None, directory=directory)
    assert " pipelines run configs/offline_kk_cpu.yaml " in offline.entrypoint
    comparison = read_submission(ROOT / "configs" / "compare_kk_cpu.yaml", (), run_dir=None, directory=directory)
    assert " pipelines compare configs/compare_kk_cpu.yaml " in comparison.entrypoint
    with pytest.raises(ConfigError, match="is a configuration of `rlad eval`"):
        read_submission(ROOT / "configs" / "eval_math.yaml", (), run_dir=None, directory=directory)


def test_runtime_env_has_the_given_settings_and_refuses_secrets(tmp_path: Path) -> None:
    chosen = JobEnvironment(
        variables={"HF_HUB_OFFLINE": "1", "RLAD_CACHE": "/shared/cache"},
        packages=["einops==0.8"],
        python="/opt/bin/python",
    )
    runtime_env = chosen.runtime_env(tmp_path / "x.zip")
    assert (
        runtime_env["env_vars"]
        | {"HF_HUB_OFFLINE": "1", "RLAD_CACHE": "/shared/cache", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
        == runtime_env["env_vars"]
    )
    assert (runtime_env["pip"], runtime_env["py_executable"]) == (["einops==0.8"], "/opt/bin/python")
    for secret in ("HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password"):
        with pytest.raises(ConfigError, match=f"{secret} looks like a secret"):
            JobEnvironment(variables={secret: "x"}, packages=(), python=None)
    assert parse_variables(["A=b=c", "TOKENIZERS_PARALLELISM=true"]) == {"A": "b=c", "TOKENIZERS_PARALLELISM": "true"}
    with pytest.raises(ConfigError, match="got 'A B=c'"):
        parse_variables(["A=b", "A B=c"])
