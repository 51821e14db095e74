"""What Ray and Serve raise for a failed remote call, told in the project's own errors. Serve's are subclasses of Ray's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    GetTimeoutError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from rlad.errors import DeadlineError, EngineError, RladError, WorkerLostError

# Serve cancels what a replica still had when its time to drain was over.
_LOST = (RayActorError, WorkerCrashedError, OwnerDiedError, TaskCancelledError)


def as_rlad_error(error: Exception, *, who: str) -> RladError:
    """The error to raise in place of what a remote call raised.

    An error of ours that was raised on the other side comes back as itself: Ray wraps it in a class derived from it, whose message is a traceback.

    Args:
        error: as it was caught.
        who: the callee, named in the message.

    Returns:
        The remote side's `RladError`; `WorkerLostError` where the callee died or was taken away, so that another may do the work;
        `DeadlineError`; `EngineError` for anything else.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RladError):
            return cause
        return EngineError(f"{who} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, RladError):
        return error
    if isinstance(error, _LOST):
        return WorkerLostError(f"{who} was lost: {_first_line(error)}")
    if isinstance(error, TimeoutError | GetTimeoutError):
        return DeadlineError(f"no answer from {who} in time: {_first_line(error)}")
    return EngineError(f"{who} failed: {type(error).__name__}: {_first_line(error)}")


@contextmanager
def translated(*, who: str) -> Iterator[None]:
    """Around remote calls: whatever they raise leaves the block as `as_rlad_error` tells it."""
    try:
        yield
    except Exception as error:
        ours = as_rlad_error(error, who=who)
        if ours is error:
            raise
        raise ours from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
