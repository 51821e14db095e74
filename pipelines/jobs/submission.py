"""`rlad submit`: a run as a job of a Ray cluster.

The job id derives from the run directory, so submitting a run twice starts it once.
"""

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
from rlad.config import RunConfig, load_run_config
from rlad.config.comparison import load_comparison
from rlad.config.load import read_settings
from rlad.config.prompts import files_of
from rlad.credentials import is_secret_name, secret_in
from rlad.data.sources.object_store import is_object_uri
from rlad.errors import ConfigError, JobError
from rlad.models.references import ReferenceKind, parse_model
from rlad.verifiers import reward_models

STOP_GRACE_S = 60
"""Seconds that a stopped job has to shut its pools down. Ray's default of three seconds would leave teachers behind."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run to submit.

    Attributes:
        name: Name of the run.
        run_dir: Absolute run directory, on storage that all nodes mount.
        entrypoint: Command of the job. It continues the run if the directory contains one.
        settings: Digest of the run's settings.
    """

    name: str
    run_dir: Path
    entrypoint: str
    settings: str

    @property
    def job_id(self) -> str:
        """Id of the run's first job. It depends only on the run's name and directory."""
        return f"{self.name}-{hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnvironment:
    """Ray `runtime_env` of a job, without its files.

    Attributes:
        variables: Environment variables of the job's processes, in addition to those of every run. Secrets are refused;
            they belong in the environment of the nodes.
        packages: Packages that Ray installs with pip for the job; empty to use the nodes' packages.
        python: Python interpreter on the nodes; None for `python` on their PATH.
    """

    variables: Mapping[str, str]
    packages: Sequence[str]
    python: str | None

    def __post_init__(self) -> None:
        # Every user of the dashboard can read a job's environment.
        for name, value in self.variables.items():
            found = "" if is_secret_name(name) else secret_in(value)
            if found is not None:
                raise ConfigError(
                    f"{name} looks like a secret{f' (its value is or contains {found})' if found else ''}, and the "
                    "dashboard shows a job's environment: set it in the environment of the nodes"
                )
        if found := next(filter(None, map(secret_in, self.packages)), None):
            raise ConfigError(
                f"--pip: a package is or contains {found}, and the dashboard shows a job's packages: configure the "
                "index in pip.conf on the nodes or with PIP_INDEX_URL in their environment, or install it there"
            )

    def runtime_env(self, working_dir: Path | None) -> dict[str, Any]:
        """Return the `runtime_env` dictionary.

        Args:
            working_dir: Zip file of the working directory; None if nothing is uploaded.
        """
        environment = {**WORKER_ENVIRONMENT, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **self.variables}
        uploaded = None if working_dir is None else str(working_dir)
        optional = {"working_dir": uploaded, "pip": list(self.packages), "py_executable": self.python}
        return {
            "env_vars": environment,
            **{key: value for key, value in optional.items() if value},
        }


def parse_variables(pairs: Sequence[str]) -> dict[str, str]:
    """Parse environment variables of the form `NAME=VALUE`.

    Raises:
        ConfigError: An entry does not have this form.
    """
    wrong = [pair for pair in pairs if "=" not in pair or not _VARIABLE.fullmatch(pair.partition("=")[0])]
    if wrong:
        raise ConfigError(f"--env requires NAME=VALUE, for example RLAD_CACHE=/shared/cache; got {wrong[0]!r}")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def absolute_run_dir(run_dir: Path | None, name: str) -> Path:
    """Return the absolute run directory. Relative paths start from the current directory, as without a cluster."""
    return absolute(run_dir or Path("runs") / name)


def read_submission(
    config: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    directory: WorkingDirectory,
    python: str | None = None,
    max_restarts: int = 0,
) -> Submission:
    """Read and check the configuration of a run or comparison, and build its submission.

    Args:
        config: Configuration file.
        overrides: Settings that override the file.
        run_dir: Run directory; None for the default.
        directory: Working directory to upload.
        python: Python interpreter on the nodes; None for `python` on their PATH.
        max_restarts: How often a run's driver is started again when it dies. A comparison is not started again.

    Raises:
        ConfigError: The configuration is invalid, or names a file that the job would not find.
    """
    settings = read_settings(config, [])
    if "sets" in settings:
        raise ConfigError(
            f"{config} is a configuration of `rlad eval`, not of a run: "
            "submit it with `ray job submit -- python -m pipelines eval ...`"
        )
    if "methods" in settings:
        comparison = load_comparison(config, overrides)
        command, name, runs = "compare", comparison.config.name, [planned.config for planned in comparison.runs]
        if isinstance(settings.get("base"), str):
            _path_in_job(config.parent / settings["base"], directory)
    else:
        run = load_run_config(config, overrides)
        command, name, runs = "run", run.name, [run]
    for run_config in runs:
        _require_files(run_config, directory)
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
    restarts = ["--max-restarts", str(max_restarts)] if max_restarts and command == "run" else []
    resolved = json.dumps(
        [run_config.model_dump(mode="json", exclude={"cluster"}) for run_config in runs], sort_keys=True
    )
    return Submission(
        name=name,
        run_dir=where,
        entrypoint=shlex.join([*words, "--run-dir", str(where), "--resume", *restarts]),
        settings=hashlib.sha256(resolved.encode()).hexdigest()[:16],
    )


def submit(
    jobs: JobClient,
    submission: Submission,
    directory: WorkingDirectory | None,
    environment: JobEnvironment,
    *,
    job_id: str | None = None,
) -> tuple[Job, bool]:
    """Submit a run unless an active job already runs it. After its job `ID` has ended, job `ID-2` continues the run.

    Args:
        jobs: Client of the cluster.
        submission: Run to submit.
        directory: Working directory to upload; None to upload nothing.
        environment: Environment of the job.
        job_id: Job id; None for the submission's own.

    Returns:
        The run's job, and True if it is new.

    Raises:
        JobError: A job runs with other settings in this run directory, or the cluster refuses the job.
    """
    first = job_id or submission.job_id
    known = jobs.all()
    working = _working_on(known, submission, first)
    if working is not None:
        return working, False
    chosen = next_id(first, [job.id for job in known])
    with tempfile.TemporaryDirectory() as folder:
        package = None if directory is None else Path(folder) / "working_dir.zip"
        runtime_env = environment.runtime_env(package)
        if directory is not None and package is not None:
            directory.pack(package)
        metadata = {RUN_DIR_KEY: str(submission.run_dir), SETTINGS_KEY: submission.settings}
        try:
            jobs.submit(chosen, entrypoint=submission.entrypoint, runtime_env=runtime_env, metadata=metadata)
        except JobError:
            # Another process has submitted the same run in the meantime.
            working = _working_on(jobs.all(), submission, first)
            if working is None:
                raise
            return working, False
    job = jobs.find(chosen)
    if job is None:
        raise JobError(f"the cluster at {jobs.address} accepted job {chosen} but does not know it: check the address")
    return job, True


def next_id(first: str, known: Sequence[str]) -> str:
    """Return the first unused id of a run's jobs: `first`, then `first-2` and so on."""
    suffixes = [
        1 if job_id == first else int(job_id.removeprefix(f"{first}-"))
        for job_id in known
        if re.fullmatch(rf"{re.escape(first)}(-[1-9]\d*)?", job_id)
    ]
    return f"{first}-{max(suffixes) + 1}" if suffixes else first


def find_job(jobs: JobClient, target: str) -> Job:
    """Find a job by its id, or the latest job of a run by its run directory.

    Raises:
        JobError: The cluster knows no such job.
    """
    where = str(absolute(Path(target)))
    known = jobs.all()
    found = [job for job in known if job.id == target] or [job for job in known if job.run_dir == where]
    if not found:
        raise JobError(
            f"the cluster at {jobs.address} knows no job {target} and no job with run directory {where}; "
            "`rlad list` shows its jobs"
        )
    return found[-1]


def failure(job: Job, log: str) -> str:
    """Describe why a job did not succeed: the log's last `error:` line with its continuation, or the log's end."""
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
            f"job {job.id} failed (exit code {job.exit_code}) without an error message; its last lines:",
            *(f"  {line}" for line in last),
        ]
    )


def exit_code(job: Job) -> int:
    """Return the exit code for the shell: the job's own, 128 + N for signal N, or 1 for a failed job without a code."""
    if job.status == "succeeded":
        return 0
    code = job.exit_code or 1
    return code if code > 0 else 128 - code


def _working_on(known: Sequence[Job], submission: Submission, first: str) -> Job | None:
    """Return the active job of a run, or None.

    Raises:
        JobError: The job runs with other settings, or a job with this id runs in another directory.
    """
    alive = [job for job in known if job.is_submitted and not job.has_ended]
    matching = [job for job in alive if job.run_dir == str(submission.run_dir)]
    if matching:
        job = matching[-1]
        if job.settings is not None and job.settings != submission.settings:
            raise JobError(
                f"job {job.id} runs with other settings in {submission.run_dir}: "
                "choose another --run-dir, or stop the job with `rlad stop`"
            )
        return job
    namesake = next((job for job in alive if job.id == first), None)
    if namesake is not None:
        raise JobError(
            f"job {first} already exists with run directory {namesake.run_dir or 'unknown'}: "
            "choose another --submission-id"
        )
    return None


def _path_in_job(path: Path, directory: WorkingDirectory) -> str:
    """Return the path at which the job finds a file: relative to the working directory, or absolute as given."""
    from_root = absolute(path)
    if from_root.is_relative_to(directory.root):
        name = from_root.relative_to(directory.root).as_posix()
        if not directory.holds(name):
            raise ConfigError(
                f"{path} is excluded from the upload of {directory.root} by an ignore file (.gitignore, .rladignore)"
            )
        return name
    if path.is_absolute():
        return str(path)
    raise ConfigError(
        f"{path} is outside the working directory {directory.root}, so the job would not find it: "
        "move it there, choose another --working-dir, or give an absolute path that exists on the cluster's head"
    )


def _require_files(config: RunConfig, directory: WorkingDirectory) -> None:
    """Refuse relative paths of models and data that are not uploaded with the job."""
    models = {
        "student.path": config.student.path,
        **{f"{pool}: path": model.path for pool, model in config.frozen_models.items()},
        **{f"verifiers.{task}.path": model.path for task, model in reward_models(config.verifiers).items()},
    }
    # A directory that is named like a hub id means the directory, which the job needs.
    named = {
        key: path
        for key, path in models.items()
        if parse_model(path).kind is ReferenceKind.DIRECTORY or (directory.root / path).is_dir()
    }
    for key, prompts in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        for place, file in files_of(prompts).items():
            if not is_object_uri(file.path):
                named[".".join(filter(None, (key, place, "path")))] = file.path
    if config.offline is not None and config.offline.traces is not None:
        named["offline.traces"] = config.offline.traces
    for key, path in named.items():
        if not Path(path).expanduser().is_absolute() and not directory.holds(path):
            raise ConfigError(
                f"{key}: {path} is relative and not uploaded from {directory.root}, so the job would not find it: "
                f"give an absolute path on storage that all nodes mount"
            )
