"""A run handed to a cluster: done once however often it is handed in, refused where it could not work, told in its own words when it fails."""

from __future__ import annotations

import io
import json
import shlex
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli import jobs as jobs_cli
from pipelines.cluster.job_environment import require_lasting
from pipelines.jobs.client import Job, JobClient
from pipelines.jobs.submission import (
    JobEnvironment,
    exit_code,
    failure,
    find_job,
    next_id,
    parse_variables,
    read_submission,
    submit,
)
from pipelines.jobs.working_directory import WorkingDirectory, read_working_directory
from rlad.errors import ClusterError, ConfigError, JobError, RunDirectoryError

from .dashboard import Dashboard, serving

ROOT = Path(__file__).parents[4]
PLAIN = JobEnvironment(variables={}, packages=(), python=None)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with serving() as served:
        yield served


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run's configuration, which is the current one."""
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "smoke.yaml").write_text((ROOT / "configs" / "smoke_cpu.yaml").read_text())
    monkeypatch.chdir(root)
    return root


def packed(project: Path) -> WorkingDirectory:
    return read_working_directory(project)


def hand_in(
    dashboard: Dashboard, project: Path, *overrides: str, run_dir: str = "/shared/run", job_id: str | None = None
) -> tuple[Job, bool]:
    directory = packed(project)
    submission = read_submission(Path("configs/smoke.yaml"), overrides, run_dir=Path(run_dir), directory=directory)
    return submit(JobClient(dashboard.address), submission, directory, PLAIN, job_id=job_id)


def a_job(*, status: str = "failed", exit_code: int | None = 1, message: str = "") -> Job:
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


def test_the_job_gets_the_files_the_command_and_no_secret(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    job, is_new = hand_in(dashboard, project, "training.steps=2", "objective.alpha=0.3")
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


def test_a_run_handed_in_twice_is_done_once(dashboard: Dashboard, project: Path) -> None:
    first, is_new = hand_in(dashboard, project)
    again, is_new_again = hand_in(dashboard, project)
    assert (is_new, is_new_again) == (True, False)
    assert again.id == first.id
    other, _ = hand_in(dashboard, project, run_dir="/shared/other")
    assert len(dashboard.jobs) == 2
    assert other.id != first.id


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_an_ended_job_is_followed_by_one_that_continues_the_run(
    status: str, dashboard: Dashboard, project: Path
) -> None:
    first, _ = hand_in(dashboard, project)
    dashboard.end(first.id, status)
    second, is_new = hand_in(dashboard, project)
    assert (second.id, is_new) == (f"{first.id}-2", True)
    assert dashboard.jobs[second.id]["entrypoint"].endswith("--resume")
    dashboard.end(second.id, status)
    assert hand_in(dashboard, project)[0].id == f"{first.id}-3"


def test_the_id_depends_on_the_directory_not_on_where_it_is_typed(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = packed(project)
    relative = read_submission(Path("configs/smoke.yaml"), (), run_dir=Path("runs/a"), directory=directory)
    monkeypatch.chdir(project / "configs")
    elsewhere = read_submission(
        project / "configs" / "smoke.yaml", (), run_dir=project / "configs" / ".." / "runs" / "a", directory=directory
    )
    assert relative == elsewhere
    assert relative.run_dir == project / "runs" / "a"
    assert relative.job_id.startswith("smoke-cpu-")


def test_a_living_run_with_other_settings_is_named(dashboard: Dashboard, project: Path) -> None:
    first, _ = hand_in(dashboard, project)
    with pytest.raises(JobError, match=f"job {first.id} does a run with other settings in /shared/run"):
        hand_in(dashboard, project, "seed=7")
    assert hand_in(dashboard, project, "cluster.start_timeout_s=99")[0].id == first.id, (
        "where it runs is no setting of the run"
    )


def test_a_chosen_id_is_used_and_continued(dashboard: Dashboard, project: Path) -> None:
    first, _ = hand_in(dashboard, project, job_id="nightly-1")
    assert first.id == "nightly-1"
    assert hand_in(dashboard, project, job_id="nightly-1") == (first, False)
    with pytest.raises(JobError, match="there is a job nightly-1 already, whose run is in /shared/run"):
        hand_in(dashboard, project, run_dir="/shared/other", job_id="nightly-1")
    dashboard.end("nightly-1", "FAILED")
    assert hand_in(dashboard, project, job_id="nightly-1")[0].id == "nightly-1-2"


def test_who_loses_a_race_gets_the_winner_s_job(
    dashboard: Dashboard, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = packed(project)
    submission = read_submission(Path("configs/smoke.yaml"), (), run_dir=Path("/shared/run"), directory=directory)
    client, other = JobClient(dashboard.address), JobClient(dashboard.address)
    # Another submitter is done between this one's look and its request: the upload is what lies between.
    pack = WorkingDirectory.pack

    def overtaken(self: WorkingDirectory, target: Path) -> None:
        monkeypatch.setattr(WorkingDirectory, "pack", pack)
        submit(other, submission, directory, PLAIN)
        pack(self, target)

    monkeypatch.setattr(WorkingDirectory, "pack", overtaken)
    job, is_new = submit(client, submission, directory, PLAIN)
    assert (job.id, is_new) == (submission.job_id, False)
    assert len(dashboard.jobs) == 1


def test_suffixes_follow_the_highest() -> None:
    assert next_id("a-1", []) == "a-1"
    assert next_id("a-1", ["a-1"]) == "a-1-2"
    assert next_id("a-1", ["a-1-9", "a-1-10", "a-12", "a-1-x", "b-a-1"]) == "a-1-11"
    assert next_id("a.1", ["aX1"]) == "a.1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("student.path=models/student",), "student.path: models/student is relative and not in what is uploaded"),
        (("teacher.path=Qwen/Qwen3-8B",), "teacher: path: Qwen/Qwen3-8B is relative"),
        (("objective.alhpa=0.3",), "did you mean `alpha`"),
    ],
)
def test_what_the_job_would_not_find_is_refused_before_the_upload(
    overrides: tuple[str, ...], message: str, project: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_submission(Path("configs/smoke.yaml"), overrides, run_dir=None, directory=packed(project))


def test_prompts_travel_with_the_job_or_are_absolute(project: Path) -> None:
    config = project / "configs" / "smoke.yaml"
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "prompts": {"source": "file", "path": "data/p.jsonl"}}))
    with pytest.raises(ConfigError, match=r"prompts.path: data/p.jsonl is relative and not in what is uploaded"):
        read_submission(config, (), run_dir=None, directory=packed(project))
    assert (
        "prompts.path=/shared/p.jsonl"
        in read_submission(config, ["prompts.path=/shared/p.jsonl"], run_dir=None, directory=packed(project)).entrypoint
    )
    (project / "data").mkdir()
    (project / "data" / "p.jsonl").write_text("{}")
    read_submission(config, (), run_dir=None, directory=packed(project))


def test_a_configuration_outside_is_taken_only_by_its_absolute_path(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text((project / "configs" / "smoke.yaml").read_text())
    directory = packed(project)
    with pytest.raises(ConfigError, match=r"\.\./outside.yaml is outside the working directory"):
        read_submission(Path("../outside.yaml"), (), run_dir=None, directory=directory)
    assert str(outside) in read_submission(outside, (), run_dir=None, directory=directory).entrypoint
    (project / ".gitignore").write_text("configs/\n")
    with pytest.raises(ConfigError, match="left out of what is uploaded"):
        read_submission(Path("configs/smoke.yaml"), (), run_dir=None, directory=packed(project))


def test_every_kind_of_run_gets_its_command(project: Path) -> None:
    directory = read_working_directory(ROOT)
    offline = read_submission(ROOT / "configs" / "offline_kk_cpu.yaml", (), run_dir=None, directory=directory)
    assert " pipelines offline configs/offline_kk_cpu.yaml " in offline.entrypoint
    comparison = read_submission(ROOT / "configs" / "compare_kk_cpu.yaml", (), run_dir=None, directory=directory)
    assert " pipelines compare configs/compare_kk_cpu.yaml " in comparison.entrypoint
    with pytest.raises(ConfigError, match="is for `rlad eval`"):
        read_submission(ROOT / "configs" / "eval_math.yaml", (), run_dir=None, directory=directory)


def test_a_job_s_environment_is_pinned_and_holds_no_secret(tmp_path: Path) -> None:
    chosen = JobEnvironment(
        variables={"HF_HUB_OFFLINE": "1", "RLAD_CACHE": "/shared/cache"},
        packages=["einops==0.8"],
        python="/opt/bin/python",
    )
    made = chosen.runtime_env(tmp_path / "x.zip")
    assert (
        made["env_vars"] | {"HF_HUB_OFFLINE": "1", "RLAD_CACHE": "/shared/cache", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
        == made["env_vars"]
    )
    assert (made["pip"], made["py_executable"]) == (["einops==0.8"], "/opt/bin/python")
    for secret in ("HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password"):
        with pytest.raises(ConfigError, match=f"{secret} looks like a secret"):
            JobEnvironment(variables={secret: "x"}, packages=(), python=None)
    assert parse_variables(["A=b=c", "TOKENIZERS_PARALLELISM=true"]) == {"A": "b=c", "TOKENIZERS_PARALLELISM": "true"}
    with pytest.raises(ConfigError, match="got 'A B=c'"):
        parse_variables(["A=b", "A B=c"])


def test_jobs_are_found_by_id_and_by_run_the_latest_first(dashboard: Dashboard) -> None:
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


def test_a_failure_is_told_in_the_run_s_own_words() -> None:
    log = (
        "error: an older one\nstep 1/6\nerror: configs/a.yaml:\n  seed: required\n  name: required\nWebSocket closed\n"
    )
    assert failure(a_job(), log) == "job smoke-1 failed: configs/a.yaml:\n  seed: required\n  name: required"
    killed = failure(a_job(exit_code=-9, message="Job entrypoint command failed"), "step 1/6\nstep 2/6\n")
    assert killed == "job smoke-1 failed (exit code -9) and gave no reason; its last lines:\n  step 1/6\n  step 2/6"
    assert "Runtime env setup failed" in failure(a_job(exit_code=None, message="Runtime env setup failed"), "")
    assert (
        failure(a_job(status="stopped", exit_code=None), "error: x")
        == "job smoke-1 was stopped; submit it again to continue the run"
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("succeeded", 0, 0), ("failed", 3, 3), ("failed", -9, 137), ("failed", None, 1), ("stopped", None, 1)],
)
def test_the_exit_status_reaches_the_submitter_s_shell(status: str, code: int | None, expected: int) -> None:
    assert exit_code(a_job(status=status, exit_code=code)) == expected


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, "Unauthorized: Missing authentication token"), "refuses us: a token is wanted and none was given"),
        ((403, "Forbidden: Invalid authentication token"), "refuses us: the token is wrong"),
        ((500, "out of order"), "no Ray cluster answers at"),
    ],
)
def test_a_refusal_is_one_sentence(refusal: tuple[int, str], message: str, dashboard: Dashboard) -> None:
    dashboard.refusal = refusal
    with pytest.raises(ClusterError, match=message) as raised:
        JobClient(dashboard.address)
    assert "\n" not in str(raised.value)


def test_the_typed_address_wins_over_the_environment_s(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert JobClient(dashboard.address).all() == []
    assert JobClient(dashboard.address.removeprefix("http://")).address == dashboard.address
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127.0.0.1:1"):
        JobClient()


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}: .*refused"):
            JobClient(address)


def test_waiting_returns_the_end_and_gives_up_at_the_deadline(dashboard: Dashboard) -> None:
    dashboard.add("a")
    client = JobClient(dashboard.address)
    with pytest.raises(TimeoutError):
        client.wait("a", deadline_s=0.2)
    dashboard.end("a", "FAILED", exit_code=2)
    assert client.wait("a", deadline_s=10).exit_code == 2
    del dashboard.jobs["a"]
    with pytest.raises(JobError, match="does not know job a any more"):
        client.wait("a", deadline_s=10)


def test_a_run_directory_that_would_vanish_with_the_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_lasting(Path("runs/a"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": {}}, "metadata": {}}))
    require_lasting(Path("runs/a"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    with pytest.raises(
        RunDirectoryError, match="runs/a is relative, so it would be in the job's working directory and vanish"
    ):
        require_lasting(Path("runs/a"))
    require_lasting(tmp_path.parent / "shared" / "a")


def test_programs_that_joined_the_cluster_are_listed_while_they_last_or_as_runs(dashboard: Dashboard) -> None:
    joined = {"type": "DRIVER", "submission_id": None}
    dashboard.add("01", **joined, status="SUCCEEDED", entrypoint="rlad status runs/a")
    dashboard.add("02", **joined, entrypoint="python notebook.py")
    dashboard.add("03", **joined, status="FAILED", entrypoint="rlad run configs/a.yaml --run-dir /shared/runs/a")
    for job_id, job in dashboard.jobs.items():
        job["job_id"] = job_id
    listed = CliRunner().invoke(jobs_cli.app, ["list", "--json", "--address", dashboard.address])
    assert [job["id"] for job in json.loads(listed.stdout)] == ["02", "03"]


def test_the_commands_submit_list_tell_and_stop(dashboard: Dashboard, project: Path) -> None:
    def rlad(*arguments: str) -> Result:
        return CliRunner().invoke(jobs_cli.app, [*arguments, "--address", dashboard.address])

    submitted = rlad("submit", "configs/smoke.yaml", "--run-dir", "runs/a")
    assert submitted.exit_code == 0, submitted.output
    (job_id,) = dashboard.jobs
    assert f"job {job_id} submitted to {dashboard.address} (1 files" in submitted.stdout
    assert f"run directory {project}/runs/a: every node has to see it there" in submitted.stdout
    assert [job["id"] for job in json.loads(rlad("list", "--json").stdout)] == [job_id]
    assert json.loads(rlad("status", job_id, "--json").stdout)["run_dir"] == f"{project}/runs/a"
    assert rlad("stop", "runs/a").stdout == f"job {job_id} stopped\n"
    assert "knows no job nothing" in str(rlad("logs", "nothing").exception)


def test_who_waits_gets_the_run_s_exit_status_and_its_own_error(dashboard: Dashboard, project: Path) -> None:
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
