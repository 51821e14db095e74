"""Commands of scheduled runs as jobs of a standing cluster. A job outlives its ticker, and another ticker adopts it."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import time
from functools import cached_property
from pathlib import Path

from pipelines.jobs.client import Job, JobClient
from pipelines.jobs.submission import JobEnvironment, Submission, exit_code, submit
from pipelines.jobs.working_directory import read_working_directory
from pipelines.run.status import STOPPED_EXIT_CODE
from pipelines.schedules.launcher import RunExit, RunningRun, RunRequest, last_line_with
from rlad.config.schedule import RayJobLauncherConfig, ScheduleConfig
from rlad.errors import ClusterError, JobError

logger = logging.getLogger(__name__)

# Seconds between two requests for the state of a job.
_POLL_S = 2.0
# Added to the time that a stopped job has to end itself.
_STOP_MARGIN_S = 15.0


class RayJobLauncher:
    """Launcher that submits commands to the job API of a Ray cluster.

    The id of a job derives from the command's name, which contains the schedule and its due time, and from its
    directory. The cluster refuses an id that is in use, so two tickers never start the same run twice.
    """

    def __init__(self, schedule: ScheduleConfig) -> None:
        assert isinstance(schedule.launcher, RayJobLauncherConfig)
        self.settings = schedule.launcher
        self._schedule = schedule

    @cached_property
    def client(self) -> JobClient:
        """Client of the cluster.

        Raises:
            ClusterError: The cluster does not answer, or the token is missing or refused.
        """
        return JobClient(self.settings.address, token=read_token(self.settings))

    def start(self, request: RunRequest) -> RunningRun:
        """Submit a command, unless one of its jobs is active.

        Raises:
            ClusterError, JobError: The cluster does not answer, or refuses the job.
        """
        settings, schedule = self.settings, self._schedule
        environment = JobEnvironment(
            variables={"RAY_JOB_STOP_WAIT_TIME_S": f"{schedule.stop_grace_s:.0f}", **settings.variables},
            packages=settings.packages,
            python=settings.python,
        )
        command = shlex.join([settings.python or "python", "-m", "pipelines", *request.arguments])
        # The command reads its settings from a file of the schedule that no later run changes.
        digest = hashlib.sha256(command.encode()).hexdigest()[:16]
        submission = Submission(name=request.name, run_dir=request.output, entrypoint=command, settings=digest)
        directory = None
        if settings.upload:
            own = [Path(place) for place in (schedule.directory, schedule.registry) if "://" not in place]
            directory = read_working_directory(request.working_dir, without=own)
        job, is_new = submit(self.client, submission, directory, environment)
        logger.info("job=%s run=%s submitted=%s", job.id, request.name, is_new)
        return _JobRun(self, request, job.id)

    def adopt(self, request: RunRequest, job: str) -> RunningRun:
        return _JobRun(self, request, job)


class _JobRun:
    """A command that runs as a job. A cluster that does not answer is tolerated for `away_s`."""

    def __init__(self, launcher: RayJobLauncher, request: RunRequest, job: str) -> None:
        self.job: str | None = job
        self._id, self._launcher, self._request = job, launcher, request
        self._next_look = self._answered_at = time.monotonic()

    def wait(self, timeout_s: float) -> RunExit | None:
        now = time.monotonic()
        time.sleep(max(0.0, min(timeout_s, self._next_look - now)))
        if time.monotonic() < self._next_look:
            return None
        try:
            job = self._launcher.client.find(self._id)
        except (ClusterError, JobError) as error:  # a head that starts refuses some requests
            silent_s = time.monotonic() - self._answered_at
            if silent_s < self._launcher.settings.away_s:
                logger.warning("job=%s cluster_silent_s=%.0f error=%s", self._id, silent_s, error)
                self._next_look = time.monotonic() + _POLL_S
                return None
            return RunExit(status=1, reason=f"job {self._id} is lost: {error}")
        self._answered_at = time.monotonic()
        self._next_look = self._answered_at + _POLL_S
        if job is None:
            address = self._launcher.client.address
            return RunExit(
                status=1,
                reason=f"job {self._id} is lost: its head was replaced, and the cluster at {address} does not know it",
            )
        return self._exit_of(job) if job.has_ended else None

    def is_stopped(self) -> bool:
        return False  # the pools of a run watch its processes

    def stop(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s + _STOP_MARGIN_S
        try:
            self._launcher.client.stop(self._id)
            while time.monotonic() < deadline:
                if self.wait(_POLL_S) is not None:
                    return
            logger.warning("job=%s stop=late grace_s=%g", self._id, grace_s)
        except (ClusterError, JobError) as error:
            logger.warning("job=%s stop=failed error=%s", self._id, error)

    def _exit_of(self, job: Job) -> RunExit:
        log_start = self._append_log(job)
        status = exit_code(job)
        if status == 0:
            return RunExit(status=0, reason=None)
        if job.status == "stopped" and job.exit_code is None:
            return RunExit(status=STOPPED_EXIT_CODE, reason=f"job {job.id} was stopped at the cluster")
        word = "stopped:" if status == STOPPED_EXIT_CODE else "error:"
        last = last_line_with(word, self._request.log, log_start)
        return RunExit(status=status, reason=f"job {job.id} ended with status {status}: {last or job.message}")

    def _append_log(self, job: Job) -> int:
        """Append the job's output to the run's log, and return the offset at which it begins."""
        try:
            text = self._launcher.client.logs(job.id)
        except (ClusterError, JobError) as error:  # the job's node is gone; the message has the last lines
            text = f"{job.message}\n(the log of job {job.id} cannot be read: {error})\n"
        log = self._request.log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            start = file.tell()
            file.write(f"--- job {job.id}\n{text}".encode())
        return start


def read_token(settings: RayJobLauncherConfig) -> str | None:
    """Return the cluster's token from the variable or file that the settings name; None if they name neither.

    Raises:
        ClusterError: The variable is not set, or the file cannot be read.
    """
    if settings.token_env is not None:
        token = os.environ.get(settings.token_env, "").strip()
        if not token:
            raise ClusterError(
                f"launcher.token_env names {settings.token_env}, which is not set: set it in the environment of the "
                "ticker"
            )
        return token
    if settings.token_file is None:
        return None
    try:
        return Path(settings.token_file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ClusterError(f"launcher.token_file {settings.token_file} cannot be read: {error.strerror}") from error
