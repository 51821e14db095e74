"""The jobs of a Ray cluster over HTTP: submit, find, read, follow, stop. Every request has a deadline, and what Ray raises comes back as one sentence."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
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
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_fixed

from rlad.errors import ClusterError, JobError

logger = logging.getLogger(__name__)

RUN_DIR_KEY = "rlad_run_dir"
SETTINGS_KEY = "rlad_settings"

_CONNECT_S = 10.0
_ANSWER_S = 60.0
_UPLOAD_S = 600.0
# A cluster whose head is replaced answers again within minutes; who waits for a job waits that long.
_AWAY_S = 300.0
_POLL_S = 1.0
# After a job has ended its log is read to the end.
_LAST_LINES_S = 15.0

_TOKEN_ADVICE = "give its token in RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its cluster tells it.

    Attributes:
        status: pending, running, succeeded, failed or stopped.
        message: the cluster's word on the status.
        run_dir: of the run that it does; None where the job does not say.
        settings: digest of the run's settings, of a job that `rlad submit` made.
        started_at: seconds since 1970.
        exit_code: of its command; None while it lasts, and where the command did not end by itself.
        is_submitted: False of a program that joined the cluster by itself; it can be neither followed nor stopped from here.
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
    """A cluster's jobs.

    Raises (its methods do, too):
        ClusterError: the cluster does not answer, or wants a token.
    """

    def __init__(self, address: str | None = None) -> None:
        """
        Args:
            address: of the dashboard (`http://HOST:8265` or `HOST:8265`) or of the cluster (`HOST:6379`, `ray://...`, `auto`). Default: what
                RAY_API_SERVER_ADDRESS or RAY_ADDRESS says, else the cluster that this machine is part of.
        """
        self.address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
        with self._translated(), _preferred(_located(self.address)):
            self._client = _DeadlineClient()
        self.address = self._client.get_address()

    def submit(
        self, job_id: str, *, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Hand in a job; returns when the cluster has it, not when it runs.

        Raises:
            JobError: the cluster refuses it, for example because it has had one of this id.
        """
        with self._translated():
            self._client.submit_job(
                submission_id=job_id, entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=dict(metadata)
            )

    def find(self, job_id: str) -> Job | None:
        """A job by its id; None where the cluster knows none."""
        with self._translated():
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                return None

    def all(self) -> list[Job]:
        """Every job that the cluster remembers, the latest last."""
        with self._translated():
            jobs = [_job(details) for details in self._client.list_jobs()]
        return sorted(jobs, key=lambda job: job.started_at or 0.0)

    def logs(self, job_id: str) -> str:
        """What a job has written so far.

        Raises:
            JobError: the cluster does not know the job, or the node that it ran on is gone.
        """
        with self._translated():
            text: str = self._client.get_job_logs(job_id)
        return text

    def stop(self, job_id: str) -> bool:
        """Ask a job to end now. False where it had ended.

        Raises:
            JobError: the cluster does not know the job.
        """
        with self._translated():
            stopped: bool = self._client.stop_job(job_id)
        return stopped

    def wait(self, job_id: str, *, write: Callable[[str], None] | None = None, deadline_s: float | None = None) -> Job:
        """Wait for the end of a job, over a cluster's absence of a few minutes.

        Args:
            write: gets what the job writes, as it comes.
            deadline_s: to wait no longer than this. Without it as long as the job lasts and the cluster answers.

        Raises:
            JobError: the cluster does not know the job any more.
            ClusterError: it has not answered for minutes.
            TimeoutError: the job lasts longer than the deadline.
        """
        return asyncio.run(self._wait(job_id, write, deadline_s))

    async def _wait(self, job_id: str, write: Callable[[str], None] | None, deadline_s: float | None) -> Job:
        async with asyncio.timeout(deadline_s):
            following = None if write is None else asyncio.create_task(self._follow(job_id, write))
            job = await asyncio.to_thread(self._look_patiently, job_id)
            while not job.has_ended:
                await asyncio.sleep(_POLL_S)
                job = await asyncio.to_thread(self._look_patiently, job_id)
            if following is not None:
                await asyncio.wait({following}, timeout=_LAST_LINES_S)
                following.cancel()
            return job

    async def _follow(self, job_id: str, write: Callable[[str], None]) -> None:
        """Hand on a job's log until the job ends. The stream begins anew after every break: what was handed on is skipped."""
        written = 0
        while True:
            seen = 0
            try:
                async for text in self._client.tail_job_logs(job_id):
                    fresh = text[max(0, written - seen) :]
                    seen += len(text)
                    if fresh:
                        write(fresh)
                        written = seen
                return
            except (RuntimeError, aiohttp.ClientError, OSError) as error:
                logger.warning("job=%s log_stream_broke=%s", job_id, error)
            await asyncio.sleep(_POLL_S)

    @retry(
        retry=retry_if_exception_type(ClusterError),
        stop=stop_after_delay(_AWAY_S),
        wait=wait_fixed(5),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    def _look_patiently(self, job_id: str) -> Job:
        job = self.find(job_id)
        if job is None:
            raise JobError(
                f"the cluster at {self.address} does not know job {job_id} any more: its head was replaced; submit the run again to continue it"
            )
        return job

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Ray's errors in one sentence, which names the cluster."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {self.address} refuses us: {_token_problem(str(error))}; {_TOKEN_ADVICE}"
            ) from error
        except (RayError, OSError) as error:
            raise ClusterError(f"no Ray cluster answers at {self.address}: {_first_line(error)}") from error
        except (RuntimeError, ValueError) as error:
            raise JobError(f"the cluster at {self.address} refuses: {_first_line(error)}") from error


# Ray's client tells every step of its own at INFO, whatever the program's level is.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class _DeadlineClient(JobSubmissionClient):
    """Ray's client, whose requests would wait for ever."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> requests.Response:
        answer_s = _UPLOAD_S if method == "PUT" else _ANSWER_S
        response: requests.Response = super()._do_request(method, endpoint, timeout=(_CONNECT_S, answer_s), **rest)
        return response


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Ray's client lets its environment variables win over an address that was typed: say it where it listens."""
    key = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(key)
    os.environ[key] = address
    try:
        yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


def _located(address: str) -> str:
    """A `HOST:PORT` may be the dashboard's, which speaks HTTP, or the cluster's own, which does not: ask. Others are taken as they are.

    Raises:
        OSError: nothing listens there. Ray would try for 40 seconds.
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
        status=str(details.status).lower(),
        message=details.message or "",
        entrypoint=details.entrypoint,
        run_dir=metadata.get(RUN_DIR_KEY) or _run_dir_of(details.entrypoint),
        settings=metadata.get(SETTINGS_KEY),
        started_at=None if details.start_time is None else details.start_time / 1000,
        ended_at=None if not details.end_time else details.end_time / 1000,
        exit_code=details.driver_exit_code,
        is_submitted=details.submission_id is not None,
    )


def _run_dir_of(entrypoint: str) -> str | None:
    """The absolute `--run-dir` of a command, of jobs that were submitted by other means."""
    words = entrypoint.replace("--run-dir=", "--run-dir ").split()
    given = next((value for option, value in pairwise(words) if option == "--run-dir"), None)
    return given if given is not None and PurePath(given).is_absolute() else None


def _token_problem(told: str) -> str:
    if "missing or incorrect" in told:  # the cluster's own port does not tell the two apart
        return "a token is wanted, and none or a wrong one was given"
    return "the token is wrong" if "Invalid authentication token" in told else "a token is wanted and none was given"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
