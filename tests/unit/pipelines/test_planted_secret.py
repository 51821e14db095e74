"""Secrets that are planted in the environment and in the configuration are found in no file and no output."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.cli.output import redact_logs
from pipelines.jobs.submission import JobEnvironment
from pipelines.jobs.working_directory import read_working_directory
from pipelines.kubernetes.options import DeploymentOptions
from pipelines.kubernetes.render import render
from pipelines.kubernetes.sizing import SizingOptions
from pipelines.run.directory import RunDirectory
from pipelines.run.status import recording_status
from pipelines.schedules.adding import schedule_settings
from pipelines.schedules.store import ScheduleStore
from rlad.config import load_run_config
from rlad.config.comparison import load_comparison
from rlad.errors import ConfigError, EngineError, JobError, ScheduleError

from ..rlad.planted import TOKENS, letters

ROOT = Path(__file__).parents[3]
SMOKE = ROOT / "configs" / "smoke_cpu.yaml"
NAMES = ("HF_TOKEN", "DATABASE_URL", "GITHUB_PAT", "MYSQL_PWD", "PLANTED_API_KEY")
PLANTED = {name: f"planted-{index}-{letters(20 + index)}" for index, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Plant secrets, and search every file below `tmp_path` and all output for them after the test."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    yield
    out, err = capfd.readouterr()
    texts = {"output": (out + err).encode()}
    texts |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for where, content in texts.items():
        for name, value in PLANTED.items():
            assert value.encode() not in content, f"{name} in {where}"


def changed_settings(**verifier: object) -> str:
    settings = yaml.safe_load(SMOKE.read_text())
    settings["verifiers"]["extra"] = {"name": "python_function", "function": "m:f", **verifier}
    return yaml.safe_dump(settings)


@pytest.mark.parametrize("name", NAMES)
def test_reference_to_a_secret_in_the_configuration_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SMOKE.read_text() + f"\ncluster: {{address: 'http://${{oc.env:{name}}}'}}\n")
    with pytest.raises(ConfigError) as refused:
        load_run_config(path)
    assert f"cluster.address: refers to the environment variable {name}; remove it." in str(refused.value)
    assert PLANTED[name] not in str(refused.value)
    with pytest.raises(ConfigError, match=name):
        load_run_config(SMOKE, [f"student.path=${{oc.env:{name}}}"])
    with pytest.raises(ConfigError, match=name):
        load_comparison(ROOT / "configs" / "compare_kk_cpu.yaml", [f"student.path=${{oc.env:{name}}}"])


def test_secret_under_a_harmless_name_is_refused_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODEL", TOKENS["GitHub token"])
    with pytest.raises(ConfigError, match="student.path: refers to the environment variable MY_MODEL"):
        load_run_config(SMOKE, ["student.path=${oc.env:MY_MODEL}"])
    with pytest.raises(ConfigError, match="student.path: is or contains the value of HF_TOKEN"):
        load_run_config(SMOKE, [f"student.path={PLANTED['HF_TOKEN']}"])


def test_reference_to_a_harmless_variable_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/models")
    assert load_run_config(SMOKE, ["student.path=${oc.env:MODELS}/student"]).student.path == "/models/student"


def test_run_directory_refuses_a_configuration_with_a_secret(tmp_path: Path) -> None:
    config = load_run_config(SMOKE)
    config = config.model_copy(update={"student": config.student.model_copy(update={"path": PLANTED["HF_TOKEN"]})})
    with (
        pytest.raises(ConfigError, match="must not hold secrets"),
        RunDirectory(tmp_path / "run").hold(config, resume=False),
    ):
        pytest.fail("the configuration was written")
    assert not (tmp_path / "run").exists()


def test_reason_of_a_failed_run_is_recorded_without_secrets(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(EngineError), recording_status(run):
        raise EngineError(
            f"no answer from https://user:pw@host/?token={PLANTED['HF_TOKEN']} for {PLANTED['MYSQL_PWD']}"
        )
    assert json.loads(run.status.read_text())["reason"] == "no answer from https://***@host/?token=*** for ***"


def test_errors_logs_and_tracebacks_of_the_command_line_have_no_secrets(tmp_path: Path) -> None:
    program = """
import logging, os, sys, threading
sys.argv = ["rlad", "-v", "ledger", os.environ["MISSING"]]
from pipelines.cli import main
secret = os.environ["HF_TOKEN"]
def fail():
    raise KeyError(f"thread {secret}")
if os.environ["MODE"] == "error":
    main.main()
main.redact_tracebacks()
logging.basicConfig()
main.redact_logs()
logging.getLogger("x").error("value %s", secret)
try:
    fail()
except KeyError:
    logging.getLogger("x").exception("caught")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise ValueError(f"main {secret}")
"""
    outputs = []
    for mode in ("error", "traceback"):
        environment = {
            "PYTHONPATH": str(ROOT),
            "MODE": mode,
            "MISSING": f"{tmp_path}/{PLANTED['GITHUB_PAT']}",
            **PLANTED,
        }
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        outputs.append(ended.stdout + ended.stderr)
    assert "error: no ledger at" in outputs[0]
    for expected in ("value ***", "KeyError: 'thread ***'", "Exception in thread", "ValueError: main ***"):
        assert expected in outputs[1]
    assert not [name for name, value in PLANTED.items() if value in "".join(outputs)]


def test_log_of_a_library_is_written_without_secrets() -> None:
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    root.addHandler(handler)
    try:
        redact_logs()
        redact_logs()
        logging.getLogger("library").warning("GET %s", f"https://u:p@host/{PLANTED['HF_TOKEN']}")
    finally:
        root.removeHandler(handler)
    assert stream.getvalue() == "GET https://***@host/***\n"


def test_schedule_with_a_secret_is_not_stored(tmp_path: Path) -> None:
    places = {"directory": tmp_path / "d", "registry": str(tmp_path / "r"), "cron": "0 2 * * *", "model": "kk"}
    notify = {"command": ["notify", f"--header=Authorization: Bearer {PLANTED['PLANTED_API_KEY']}"]}
    with pytest.raises(ConfigError, match=r"notify\.command: is or contains the value of PLANTED_API_KEY"):
        schedule_settings("nightly", SMOKE, [], **places, notify=notify)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="registry: is or contains a URL with credentials"):
        schedule_settings("nightly", SMOKE, [], **{**places, "registry": "s3://key:secret@bucket/r"})  # type: ignore[arg-type]
    settings = schedule_settings("nightly", SMOKE, [], **places)  # type: ignore[arg-type]
    store = ScheduleStore(f"sqlite:///{tmp_path / 's.sqlite'}")
    with pytest.raises(ConfigError):
        store.add(settings.model_copy(update={"registry": PLANTED["HF_TOKEN"]}), evaluation_fingerprint="f")
    assert store.schedules() == []
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://rlad:{}@127.0.0.1:9/rlad?connect_timeout=1",
        "postgresql+nodriver://rlad:{}@host/rlad",
        "postgresql:/rlad:{}@host",
        "rlad:{}",
        "postgresql+psycopg://rlad@127.0.0.1:9/rlad?connect_timeout=1&password={}",
    ],
)
def test_url_of_the_schedules_is_shown_without_its_password(url: str) -> None:
    if "psycopg" in url:
        pytest.importorskip("psycopg")
    password = letters(9)
    with pytest.raises(ScheduleError) as refused:
        ScheduleStore(url.format(password))
    assert password not in str(refused.value)
    assert refused.value.__cause__ is None or password not in str(refused.value.__cause__)


def test_refused_teacher_url_is_shown_without_its_credentials() -> None:
    with pytest.raises(ConfigError) as refused:
        load_run_config(SMOKE, [f"teacher.url=https://user:{letters(9)}@host/kk"])
    assert letters(9) not in str(refused.value)


def test_job_environment_and_packages_with_a_secret_are_refused() -> None:
    for variables in ({name: "x"} for name in NAMES):
        with pytest.raises(ConfigError, match="looks like a secret"):
            JobEnvironment(variables=variables, packages=(), python=None)
    with pytest.raises(ConfigError, match="its value is or contains the value of HF_TOKEN"):
        JobEnvironment(variables={"A": PLANTED["HF_TOKEN"]}, packages=(), python=None)
    with pytest.raises(ConfigError, match="--pip: a package is or contains a URL with credentials"):
        JobEnvironment(variables={}, packages=["p @ git+https://user:pw@host/p.git"], python=None)
    JobEnvironment(variables={"GOOGLE_APPLICATION_CREDENTIALS": "/run/gcp.json"}, packages=["p==1"], python=None)


def test_manifests_with_a_secret_are_not_rendered(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(changed_settings().replace("m:f", "${oc.env:PLANTED_API_KEY}"))
    sizing = SizingOptions(gpu_memory_gib=80, max_workers={}, memory_gib={})
    with pytest.raises(ConfigError, match="PLANTED_API_KEY"):
        render(path, [], kind="all", options=DeploymentOptions(image="rlad:1"), sizing=sizing, source="run.yaml")


CREDENTIAL_FILES = [
    ".env",
    ".env.local",
    "prod.env",
    ".ssh/id_rsa",
    ".ssh/config",
    "keys/id_ed25519",
    ".aws/credentials",
    ".netrc",
    ".git-credentials",
    ".pypirc",
    ".npmrc",
    ".docker/config.json",
    ".kube/config",
    "kubeconfig",
    "credentials.json",
    "service-account-prod.json",
    "server.pem",
    "tls.key",
    "secrets.yaml",
    "sub/.env",
    "sub/.AWS/config",
    ".config/gcloud/adc.json",
    ".huggingface/token",
    ".pgpass",
    "terraform.tfstate",
    ".vault-token",
    ".ray/auth_token",
    "token",
]
OTHER_FILES = [
    ".env.example",
    ".gitignore",
    "src/credentials.py",
    "src/secrets.py",
    "src/tokens.py",
    "tokenizer.json",
    "added_tokens.json",
    "environment.yml",
    "keys/id_rsa.pub",
    "docs/secret-sharing.md",
    "monkey.py",
]


def test_credentials_are_never_uploaded_even_if_an_ignore_file_includes_them(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in (*CREDENTIAL_FILES, *OTHER_FILES):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".gitignore").write_text("!.env\n!*\n!.ssh/\n!.ssh/**\n")
    directory = read_working_directory(project)
    assert sorted(directory.sizes) == sorted(OTHER_FILES)
    uploaded = {name.rstrip("/") for name in directory.left_out}
    assert all(any(file == name or file.startswith(f"{name}/") for name in uploaded) for file in CREDENTIAL_FILES)
    directory.pack(tmp_path / "package.zip")
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        assert sorted(archive.namelist()) == sorted(OTHER_FILES)


@pytest.mark.parametrize("kind", ["GitHub token", "private key", "AWS access key", "Hugging Face token"])
def test_file_with_a_token_stops_the_upload(kind: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "notes.md").write_text(f"# Notes\n\nuse {TOKENS[kind]}\n")
    with pytest.raises(JobError, match=rf"hold credentials.*notes\.md \({kind}\)") as refused:
        read_working_directory(project)
    assert TOKENS[kind] not in str(refused.value)
    (project / ".rladignore").write_text("notes.md\n")
    assert list(read_working_directory(project).sizes) == [".rladignore"]


def test_targets_of_links_outside_the_directory_are_not_uploaded(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".ssh").mkdir(parents=True)
    (project / ".ssh" / "id").write_text("x")
    (tmp_path / "outside").write_text("outside")
    (project / "a.py").write_text("a")
    (project / "inner").symlink_to("a.py")
    (project / "outer").symlink_to(tmp_path / "outside")
    (project / "hidden").symlink_to(".ssh/id")
    (project / "loop").symlink_to("loop")
    directory = read_working_directory(project)
    assert list(directory.sizes) == ["a.py", "inner"]
    assert directory.left_out == (".ssh/", "hidden", "outer")
    (project / "a.py").unlink()
    (project / "a.py").symlink_to(tmp_path / "outside")
    with pytest.raises(JobError, match=r"was replaced by a link that leads out"):
        replace(directory, sizes={"a.py": 7}).pack(tmp_path / "package.zip")


def test_the_project_itself_can_be_uploaded() -> None:
    assert "rlad/credentials.py" in read_working_directory(ROOT).sizes
