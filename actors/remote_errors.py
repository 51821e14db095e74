"""Conversion of Ray and Serve errors to the project's errors. Serve's errors are subclasses of Ray's."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from rlad.errors import DeadlineError, EngineError, RladError, WorkerLostError

# Serve cancels the requests that a replica still has when its drain timeout ends: `TaskCancelledError`. Objects end
# with the node that holds them (`ObjectLostError` and its subclasses); sampling the group again makes new ones.
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, TaskCancelledError)

# Maximum length of a reason. The last line of a Ray error continues with a list of common causes.
_REASON_CHARS = 220


def as_rlad_error(error: Exception, *, who: str) -> RladError:
    """Convert the error of a remote call to the project error to raise in its place.

    A `RladError` raised by the remote side is returned as it was raised: Ray wraps it in a derived class whose message
    is a traceback.

    Args:
        error: The caught error.
        who: Name of the callee for the message.

    Returns:
        The `RladError` of the remote side; `WorkerLostError` if the callee died or was removed, so that another one may
        do the work; `DeadlineError` for a timeout; `EngineError` for anything else.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RladError):
            return cause
        if isinstance(cause, ObjectLostError):  # an argument of the call
            return WorkerLostError(f"{who} received a lost object: {_first_line(cause)}")
        return EngineError(f"{who} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, RladError):
        return error
    if isinstance(error, _LOST):
        return WorkerLostError(f"{who} was lost: {_first_line(error)}")
    if isinstance(error, TimeoutError | GetTimeoutError):
        return DeadlineError(f"{who} did not answer in time: {_first_line(error)}")
    return EngineError(f"{who} failed: {type(error).__name__}: {_first_line(error)}")


@contextmanager
def translated(*, who: str) -> Iterator[None]:
    """Convert every exception of the block with `as_rlad_error`."""
    try:
        yield
    except Exception as error:
        converted = as_rlad_error(error, who=who)
        if converted is error:
            raise
        raise converted from error


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one line. Ray gives it in the last line, after a list of ids or a traceback."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[-1], _REASON_CHARS, placeholder="...") if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
