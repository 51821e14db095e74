"""Collective helpers of the learner ranks: shared failures, shared decisions and remote calls with a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
import ray.train.torch
import torch
import torch.distributed as dist

from actors.remote_errors import as_rlad_error
from rlad.errors import RladError

T = TypeVar("T")

# The broker ends a long poll after 10 s, with an empty answer if necessary. The driver sets the deadline of a batch and
# passes it to the broker, so this timeout covers a single call only.
_ANSWER_TIMEOUT_S = 120.0


class AgreedError(Exception):
    """Error of one rank that all ranks raise, so that none of them waits for another in a collective.

    Attributes:
        error: This rank's error, or another rank's error where this one had none.
        errors: Error of each rank; None for those that had none.
    """

    def __init__(self, error: RladError, errors: Sequence[RladError | None] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.errors = errors


def agree_on_success(action: Callable[[], T]) -> T:
    """Run an action that may fail on some ranks only, and fail on all ranks if it failed on any. Collective.

    Args:
        action: Called once on each rank. Only a `RladError` is shared with the other ranks.

    Returns:
        This rank's result.

    Raises:
        AgreedError: The action failed on at least one rank.
    """
    error: RladError | None = None
    result: T
    try:
        result = action()
    except RladError as raised:
        error = raised
    failed = torch.tensor(int(error is not None), device=_device())
    dist.all_reduce(failed)
    if failed:
        errors: list[RladError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        raise AgreedError(error or next(raised for raised in errors if raised is not None), errors)
    return result


def broadcast_from_first(choice: int) -> int:
    """Return the value that rank 0 passed, on every rank. Collective."""
    shared = torch.tensor(choice, device=_device())
    dist.broadcast(shared, 0)
    return int(shared)


def answer(ref: Any, who: str) -> Any:
    """Return the result of a remote call that answers at once or after a long poll.

    Args:
        ref: Object reference, or a list of them.
        who: Name of the callee, for error messages.

    Raises:
        RladError: The call failed, or did not answer within 120 s.
    """
    try:
        return ray.get(ref, timeout=_ANSWER_TIMEOUT_S)
    except Exception as error:
        raise as_rlad_error(error, who=who) from error


def _device() -> torch.device:
    return ray.train.torch.get_device() if dist.get_backend() == "nccl" else torch.device("cpu")
