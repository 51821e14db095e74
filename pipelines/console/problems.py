"""Refusals of the console: the HTTP status of each error."""

from __future__ import annotations

from rlad.credentials import redact
from rlad.errors import (
    AccessError,
    AliasConflictError,
    ClusterError,
    ConfigError,
    CorruptFileError,
    DeadlineError,
    LeaseHeldError,
    ModelNotFoundError,
    RladError,
    RunDirectoryError,
    ScheduleError,
    StorageError,
)


class NotSignedInError(AccessError):
    """Request without a session, or with a wrong token."""


class ForbiddenError(AccessError):
    """Request that the user's role does not allow, or that did not come from a page of the console."""


class TooManyAttemptsError(AccessError):
    """Sign-in after too many failed ones. The same request may succeed later."""


class NotFoundError(RladError, LookupError):
    """Page, run or schedule that does not exist."""


class RequestTooLargeError(ConfigError):
    """Form that exceeds the size limit."""


# The first class that an error is an instance of counts.
_STATUS: tuple[tuple[type[RladError], int], ...] = (
    (NotSignedInError, 401),
    (ForbiddenError, 403),
    (TooManyAttemptsError, 429),
    (NotFoundError, 404),
    (ModelNotFoundError, 404),
    (AliasConflictError, 409),
    (LeaseHeldError, 409),
    (RunDirectoryError, 409),
    (RequestTooLargeError, 413),
    (DeadlineError, 504),
    (ClusterError, 502),
    (StorageError, 507),
    (CorruptFileError, 422),
    (ConfigError, 400),
    (ScheduleError, 502),
    (AccessError, 403),
)


def status_of(error: RladError) -> int:
    """Return the HTTP status of an error; 500 for one that no rule covers."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def message_of(error: BaseException) -> str:
    """Return the message of an error without credentials."""
    return redact(str(error))
