"""Status of a run, recorded in its directory: whether it runs, and how it ended."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from pipelines.run.directory import RunDirectory
from rlad.credentials import redact
from rlad.errors import StopRequestedError
from rlad.integrity.durable import write_atomically

STOPPED_EXIT_CODE = 90
"""Exit code of `rlad run` and `rlad compare` after `rlad stop`. Signals end them with 128 plus their number."""

STOPPED_EXIT_CODES = frozenset({STOPPED_EXIT_CODE, 128 + 2, 128 + 15})
"""Exit codes of a run that was stopped: on request, by SIGINT or by SIGTERM."""


class RunStatus(enum.StrEnum):
    """Status of a run. A run that was killed keeps `running`, although it is not alive."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStatus:
    """Last recorded status of a run.

    Attributes:
        status: The status.
        reason: Reason of a stop or failure, one line; None otherwise.
        updated_at: Time of the record, in seconds since the epoch.
    """

    status: RunStatus
    reason: str | None
    updated_at: float


@contextmanager
def recording_status(run: RunDirectory) -> Iterator[None]:
    """Record that the run runs, and how it ends: a request or a signal stops it, any other error is a failure."""
    _record(run, RunStatus.RUNNING, None)
    try:
        yield
    except StopRequestedError as error:
        _record(run, RunStatus.STOPPED, str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as end:
        _record(run, RunStatus.STOPPED, str(end.__cause__ or f"interrupted ({type(end).__name__})"))
        raise
    except BaseException as error:
        _record(run, RunStatus.FAILED, (str(error) or type(error).__name__).partition("\n")[0])
        raise
    _record(run, RunStatus.FINISHED, None)


def read_status(run: RunDirectory) -> RecordedStatus | None:
    """Return the last recorded status; None for a run without one, made by an earlier version."""
    try:
        fields = json.loads(run.status.read_text(encoding="utf-8"))
        return RecordedStatus(**{**fields, "status": RunStatus(fields["status"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _record(run: RunDirectory, status: RunStatus, reason: str | None) -> None:
    record = RecordedStatus(status=status, reason=reason and redact(reason), updated_at=time.time())
    write_atomically(run.status, json.dumps(asdict(record)) + "\n")
