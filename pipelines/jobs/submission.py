"""`rlad submit`: a run as a job of a Ray cluster, under an id that the run's directory gives, so that handing it in twice does it once."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster.connection import WORKER_ENVIRONMENT
from pipelines.jobs.client import RUN_DIR_KEY, SETTINGS_KEY, Job, JobClient
from pipelines.jobs.working_directory import WorkingDirectory, absolute
from rlad.config import PromptFile, RunConfig, load_run_config
from rlad.config.comparison import load_comparison
from rlad.config.load import read_settings
from rlad.errors import ConfigError, JobError
from rlad.starters import parse_starter
from rlad.verifiers import reward_models

STOP_GRACE_S = 60
"""What a run has to take its pools down when its job is stopped. Ray would give it three seconds, and teachers would stay behind."""

# A job's environment can be read by whoever sees the dashboard.
_SECRET_WORDS = re.compile(
    r"TOKEN(?!IZERS)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run as it is handed in.

    Attributes:
        name: of the run.
        run_dir: absolute; every node has to see it there.
        entrypoint: the job's command. It continues whatever the directory holds.
        settings: digest of the run's settings.
    """

    name: str
    run_dir: Path
    entrypoint: str
    settings: str

    @property
    def job_id(self) -> str:
        """Of the run's first job: the same for the same directory, wherever it is handed in from."""
        return f"{self.name}-{hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnvironment:
    """Ray's `runtime_env` of a job, apart from its files.

    Attributes:
        variables: environment variables of all its processes, beside those that every run has. No secrets: those are the nodes' own.
        packages: that Ray installs with pip for the job's processes; without any, the nodes' own are used as they are.
        python: interpreter on the nodes; None for the `python` that they find.
    """

    variables: Mapping[str, str]
    packages: Sequence[str]
    python: str | None

    def __post_init__(self) -> None:
        secret = next((name for name in self.variables if _SECRET_WORDS.search(name)), None)
        if secret is not None:
            raise ConfigError(
                f"{secret} looks like a secret, and a job's environment is shown on the dashboard: set it where the nodes are started"
            )

    def runtime_env(self, working_dir: Path) -> dict[str, Any]:
        """As Ray takes it.

        Args:
            working_dir: a zip.
        """
        environment = {**WORKER_ENVIRONMENT, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **self.variables}
        optional = {"pip": list(self.packages), "py_executable": self.python}
        return {
            "working_dir": str(working_dir),
            "env_vars": environment,
            **{key: value for key, value in optional.items() if value},
        }


def parse_variables(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` each.

    Raises:
        ConfigError: not of this form.
    """
    wrong = [pair for pair in pairs if "=" not in pair or not _VARIABLE.fullmatch(pair.partition("=")[0])]
    if wrong:
        raise ConfigError(
            f"an environment variable is given as NAME=VALUE, for example RLAD_CACHE=/shared/cache; got {wrong[0]!r}"
        )
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def absolute_run_dir(run_dir: Path | None, name: str) -> Path:
    """Where a run goes: what is relative is so to where the command is typed, as it is without a cluster."""
    return absolute(run_dir or Path("runs") / name)


def read_submission(
    config: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    directory: WorkingDirectory,
    python: str | None = None,
) -> Submission:
    """Read and check a run's or comparison's configuration, and say what the job does.

    Raises:
        ConfigError: what is wrong with it, or a file that it names would not be found by the job.
    """
    settings = read_settings(config, [])
    if "sets" in settings:
        raise ConfigError(
            f"{config} is for `rlad eval`, which is no run: submit it with `ray job submit -- python -m pipelines eval ...`"
        )
    if "methods" in settings:
        comparison = load_comparison(config, overrides)
        command, name, runs = "compare", comparison.config.name, [planned.config for planned in comparison.runs]
        if isinstance(settings.get("base"), str):
            _path_in_job(config.parent / settings["base"], directory)
    else:
        run = load_run_config(config, overrides)
        command, name, runs = "run" if run.offline is None else "offline", run.name, [run]
    for each in runs:
        _require_files(each, directory)
    where = absolute_run_dir(run_dir, name)
    words = [
        python or "python",
        "-m",
        "pipelines",
        command,
        _path_in_job(config, directory),
        *overrides,
        "cluster.address=auto",
    ]
    resolved = json.dumps([each.model_dump(mode="json", exclude={"cluster"}) for each in runs], sort_keys=True)
    return Submission(
        name=name,
        run_dir=where,
        entrypoint=shlex.join([*words, "--run-dir", str(where), "--resume"]),
        settings=hashlib.sha256(resolved.encode()).hexdigest()[:16],
    )


def submit(
    jobs: JobClient,
    submission: Submission,
    directory: WorkingDirectory,
    environment: JobEnvironment,
    *,
    job_id: str | None = None,
) -> tuple[Job, bool]:
    """Hand a run in, unless a job does it already. One that has ended is followed by another that continues the run: `ID-2`, `ID-3`.

    Args:
        job_id: instead of the submission's own.

    Returns:
        The run's job, and whether it is new.

    Raises:
        JobError: a job does a run with other settings in this directory, or the cluster refuses.
    """
    first = job_id or submission.job_id
    known = jobs.all()
    working = _working_on(known, submission, first)
    if working is not None:
        return working, False
    chosen = next_id(first, [job.id for job in known])
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "working_dir.zip"
        runtime_env = environment.runtime_env(package)
        directory.pack(package)
        metadata = {RUN_DIR_KEY: str(submission.run_dir), SETTINGS_KEY: submission.settings}
        try:
            jobs.submit(chosen, entrypoint=submission.entrypoint, runtime_env=runtime_env, metadata=metadata)
        except JobError:
            # Somebody else handed the same run in meanwhile: it is theirs, and ours.
            working = _working_on(jobs.all(), submission, first)
            if working is None:
                raise
            return working, False
    job = jobs.find(chosen)
    if job is None:
        raise JobError(f"the cluster at {jobs.address} took job {chosen} and does not know it: is it the same cluster?")
    return job, True


def next_id(first: str, known: Sequence[str]) -> str:
    """The id after those that a run's jobs have had: `first`, then `first-2` and so on."""
    suffixes = [
        1 if each == first else int(each.removeprefix(f"{first}-"))
        for each in known
        if re.fullmatch(rf"{re.escape(first)}(-[1-9]\d*)?", each)
    ]
    return f"{first}-{max(suffixes) + 1}" if suffixes else first


def find_job(jobs: JobClient, target: str) -> Job:
    """A job by its id, or the latest of a run by the run's directory.

    Raises:
        JobError: none.
    """
    where = str(absolute(Path(target)))
    known = jobs.all()
    found = [job for job in known if job.id == target] or [job for job in known if job.run_dir == where]
    if not found:
        raise JobError(
            f"the cluster at {jobs.address} knows no job {target}, and none whose run is in {where}; `rlad list` shows what it knows"
        )
    return found[-1]


def failure(job: Job, log: str) -> str:
    """Why a job did not succeed, in the run's own words where it said any: its last `error:` with the lines that belong to it."""
    if job.status == "stopped":
        return f"job {job.id} was stopped; submit it again to continue the run"
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        rest = lines[starts[-1] + 1 :]
        length = next((number for number, line in enumerate(rest) if not line.startswith("  ")), len(rest))
        return "\n".join([f"job {job.id} failed: {lines[starts[-1]].removeprefix('error: ')}", *rest[:length]])
    last = [line for line in (log or job.message).splitlines() if line.strip()][-5:]
    return "\n".join(
        [
            f"job {job.id} failed (exit code {job.exit_code}) and gave no reason; its last lines:",
            *(f"  {line}" for line in last),
        ]
    )


def exit_code(job: Job) -> int:
    """For the submitter's shell: the job's own, a signal's as a shell gives it, 1 for what had no code and did not succeed."""
    if job.status == "succeeded":
        return 0
    code = job.exit_code or 1
    return code if code > 0 else 128 - code


def _working_on(known: Sequence[Job], submission: Submission, first: str) -> Job | None:
    """The living job of a run, among those that a cluster knows.

    Raises:
        JobError: it does a run with other settings, or it has the id and does another run.
    """
    alive = [job for job in known if job.is_submitted and not job.has_ended]
    ours = [job for job in alive if job.run_dir == str(submission.run_dir)]
    if ours:
        job = ours[-1]
        if job.settings is not None and job.settings != submission.settings:
            raise JobError(
                f"job {job.id} does a run with other settings in {submission.run_dir}: choose another --run-dir, or end it with `rlad stop`"
            )
        return job
    namesake = next((job for job in alive if job.id == first), None)
    if namesake is not None:
        raise JobError(
            f"there is a job {first} already, whose run is in {namesake.run_dir or 'another directory'}: choose another --submission-id"
        )
    return None


def _path_in_job(path: Path, directory: WorkingDirectory) -> str:
    """A file of the configuration as the job finds it: from its working directory, or as the absolute path that was typed."""
    from_root = absolute(path)
    if from_root.is_relative_to(directory.root):
        name = from_root.relative_to(directory.root).as_posix()
        if not directory.holds(name):
            raise ConfigError(
                f"{path} is left out of what is uploaded from {directory.root} by an ignore file (.gitignore, .rladignore)"
            )
        return name
    if path.is_absolute():
        return str(path)
    raise ConfigError(
        f"{path} is outside the working directory {directory.root}, so the job would not find it: "
        "put it there, choose another --working-dir, or give an absolute path that the cluster's head sees"
    )


def _require_files(config: RunConfig, directory: WorkingDirectory) -> None:
    """Refuse relative paths of models and data that do not travel with the job."""
    named = {
        "student.path": config.student.path,
        **{f"{pool}: path": model.path for pool, model in config.frozen_models.items()},
    }
    named |= {f"verifiers.{task}.path": model.path for task, model in reward_models(config.verifiers).items()}
    for key, prompts in (("prompts.path", config.prompts), ("evaluation.prompts.path", config.evaluation.prompts)):
        if isinstance(prompts, PromptFile):
            named[key] = prompts.path
    if config.offline is not None and config.offline.traces is not None:
        named["offline.traces"] = config.offline.traces
    for key, path in named.items():
        if parse_starter(path) is None and not Path(path).expanduser().is_absolute() and not directory.holds(path):
            raise ConfigError(
                f"{key}: {path} is relative and not in what is uploaded from {directory.root}, so the job would not find it: "
                f"give the absolute path on storage that all nodes see"
            )
