"""Client of a Ray cluster's job API. Every request has a deadline, and Ray's errors become one-line rlad errors."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobSubmissionClient
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_fixed, wait_random

from pipelines.run.status import STOPPED_EXIT_CODES
from rlad.credentials import redact
from rlad.errors import ClusterError, JobError

logger = logging.getLogger(__name__)

RUN_DIR_KEY = "rlad_run_dir"
SETTINGS_KEY = "rlad_settings"

_CONNECT_S = 10.0
_ANSWER_S = 60.0
_UPLOAD_S = 600.0
# Time for which waiting tolerates a cluster that does not answer. A replaced head answers again within minutes.
_AWAY_S = 300.0
_POLL_S = 1.0
# Time to read the rest of the log after a job has ended.
_LAST_LINES_S = 15.0

# Held while the environment names a cluster: a daemon follows jobs of several clusters in threads.
_ENVIRONMENT = threading.Lock()

_TOKEN_ADVICE = "set the cluster's token in RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """State of a Ray job.

    Attributes:
        id: Submission id; for a program that was not submitted, Ray's job id.
        status: pending, running, succeeded, failed or stopped.
        message: The cluster's message on the status.
        entrypoint: Command of the job.
        run_dir: Run directory; None if the job does not name one.
        settings: Digest of the run's settings; None if the job was not made by `rlad submit`.
        started_at: Start, in seconds since the epoch; None if the job has not started.
        ended_at: End, in seconds since the epoch; None if the job has not ended.
        exit_code: Exit code of the command; None while it runs, and if the command did not end by itself.
        is_submitted: False for a program that joined the cluster by itself. Its log cannot be read and it cannot be
            stopped through the job API.
    """

    id: str
    status: str
    message: str
    entrypoint: str
    run_dir: str | None
    settings: str | None
    started_at: float | None
    ended_at: float | None
    exit_code: int | None
    is_submitted: bool

    @property
    def has_ended(self) -> bool:
        return self.status in ("succeeded", "failed", "stopped")


class JobClient:
    """Client of a cluster's job API.

    Raises:
        ClusterError: The cluster does not answer, or requires a token. All methods raise it, too.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None) -> None:
        """
        Args:
            address: Address of the dashboard (`http://HOST:8265` or `HOST:8265`) or of the cluster (`HOST:6379`,
                `ray://...`, `auto`). Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then the cluster that this
                machine belongs to.
            token: Token of the cluster; None for the one in Ray's environment variables.
        """
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
        self.address = redact(given)
        with self._translated(), _preferred(_located(given)):
            self._client = _DeadlineClient(headers={"Authorization": f"Bearer {token}"} if token is not None else None)
        self.address = redact(self._client.get_address())

    def submit(
        self, job_id: str, *, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Submit a job. Return when the cluster has accepted it, before it runs.

        Raises:
            JobError: The cluster refuses the job, for example because the id is in use.
        """
        with self._translated():
            self._client.submit_job(
                submission_id=job_id, entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=dict(metadata)
            )

    def find(self, job_id: str) -> Job | None:
        """Return the job with the given id, or None."""
        with self._translated():
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                return None

    def all(self) -> list[Job]:
        """Return all jobs that the cluster knows, latest last."""
        with self._translated():
            jobs = [_job(details) for details in self._client.list_jobs()]
        return sorted(jobs, key=lambda job: job.started_at or 0.0)

    def logs(self, job_id: str) -> str:
        """Return the output of a job so far, without secrets.

        Raises:
            JobError: The cluster does not know the job, or the job's node is gone.
        """
        with self._translated():
            text: str = self._client.get_job_logs(job_id)
        return redact(text)

    def stop(self, job_id: str) -> bool:
        """Ask a job to end now. Return False if it has already ended.

        Raises:
            JobError: The cluster does not know the job.
        """
        with self._translated():
            stopped: bool = self._client.stop_job(job_id)
        return stopped

    def wait(self, job_id: str, *, write: Callable[[str], None] | None = None, deadline_s: float | None = None) -> Job:
        """Wait for the end of a job. A cluster that does not answer is tolerated for a few minutes.

        Args:
            job_id: Submission id.
            write: Function that receives the job's output as it is written.
            deadline_s: Maximum wait in seconds; None means unlimited.

        Raises:
            JobError: The cluster no longer knows the job.
            ClusterError: The cluster has not answered for minutes.
            TimeoutError: The job has not ended within the deadline.
        """
        return asyncio.run(self._wait(job_id, write, deadline_s))

    async def _wait(self, job_id: str, write: Callable[[str], None] | None, deadline_s: float | None) -> Job:
        async with asyncio.timeout(deadline_s):
            following = None if write is None else asyncio.create_task(self._follow(job_id, write))
            job = await asyncio.to_thread(self._find_with_retries, job_id)
            while not job.has_ended:
                await asyncio.sleep(_POLL_S)
                job = await asyncio.to_thread(self._find_with_retries, job_id)
            if following is not None:
                await asyncio.wait({following}, timeout=_LAST_LINES_S)
                following.cancel()
            return job

    async def _follow(self, job_id: str, write: Callable[[str], None]) -> None:
        """Write a job's log until the job ends, by lines and without secrets.

        A broken stream restarts; text that was already received is skipped.
        """
        received, pending = 0, ""
        while True:
            seen = 0
            try:
                async for text in self._client.tail_job_logs(job_id):
                    pending += text[max(0, received - seen) :]
                    seen += len(text)
                    received = max(received, seen)
                    lines, newline, pending = pending.rpartition("\n")
                    if newline:
                        write(redact(lines) + newline)
                if pending:
                    write(redact(pending))
                return
            except (RuntimeError, aiohttp.ClientError, OSError) as error:
                logger.warning("job=%s log_stream_broke=%s", job_id, error)
            await asyncio.sleep(_POLL_S)

    @retry(
        retry=retry_if_exception_type(ClusterError),
        stop=stop_after_delay(_AWAY_S),
        wait=wait_fixed(4) + wait_random(0, 2),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    def _find_with_retries(self, job_id: str) -> Job:
        job = self.find(job_id)
        if job is None:
            raise JobError(
                f"the cluster at {self.address} no longer knows job {job_id}, because its head was replaced: "
                "submit the run again to continue it"
            )
        return job

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate Ray's errors to one-line errors that name the cluster."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {self.address} refused the request: {_token_problem(str(error))}; {_TOKEN_ADVICE}"
            ) from error
        except (RayError, OSError) as error:
            raise ClusterError(f"no Ray cluster answers at {self.address}: {_first_line(error)}") from error
        except (RuntimeError, ValueError) as error:
            raise JobError(f"the cluster at {self.address} refused the request: {_first_line(error)}") from error


# Ray's client logs every step at INFO, independent of the program's level.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class _DeadlineClient(JobSubmissionClient):
    """Ray's client with request timeouts. Without them, requests may wait forever."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> requests.Response:
        answer_s = _UPLOAD_S if method == "PUT" else _ANSWER_S
        response: requests.Response = super()._do_request(method, endpoint, timeout=(_CONNECT_S, answer_s), **rest)
        return response


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Set the address in the environment variable that Ray's client prefers over its argument. One thread at a time."""
    key = "RAY_API_SERVER_ADDRESS"
    with _ENVIRONMENT:
        before = os.environ.get(key)
        os.environ[key] = address
        try:
            yield
        finally:
            os.environ.pop(key)
            if before is not None:
                os.environ[key] = before


def _located(address: str) -> str:
    """Return the address with its scheme. `HOST:PORT` is probed: the dashboard speaks HTTP, the GCS does not.

    Raises:
        OSError: No process listens at the address. Ray's client would retry for 40 seconds.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return address
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
        pass
    try:
        requests.get(f"http://{address}/api/version", timeout=_CONNECT_S)
    except requests.RequestException:
        return address
    return f"http://{address}"


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or details.job_id or "",
        status=_status(details),
        message=redact(details.message or ""),
        entrypoint=redact(details.entrypoint),
        run_dir=metadata.get(RUN_DIR_KEY) or _run_dir_of(details.entrypoint),
        settings=metadata.get(SETTINGS_KEY),
        started_at=None if details.start_time is None else details.start_time / 1000,
        ended_at=None if not details.end_time else details.end_time / 1000,
        exit_code=details.driver_exit_code,
        is_submitted=details.submission_id is not None,
    )


def _status(details: JobDetails) -> str:
    """Return the status of a job. Ray counts every exit code but 0 as a failure, also that of a stopped run."""
    status = str(details.status).lower()
    is_stopped = status == "failed" and details.driver_exit_code in STOPPED_EXIT_CODES
    return "stopped" if is_stopped else status


def _run_dir_of(entrypoint: str) -> str | None:
    """Return the absolute `--run-dir` of a command, for jobs that were not made by `rlad submit`."""
    words = entrypoint.replace("--run-dir=", "--run-dir ").split()
    given = next((value for option, value in pairwise(words) if option == "--run-dir"), None)
    return given if given is not None and PurePath(given).is_absolute() else None


def _token_problem(message: str) -> str:
    if "missing or incorrect" in message:  # the GCS port does not distinguish the two
        return "the token is missing or wrong"
    return "the token is wrong" if "Invalid authentication token" in message else "the token is missing"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
