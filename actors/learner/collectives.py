"""How the learner's ranks stay together: what can fail on one alone fails on all, and what one decides all do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
import ray.train.torch
import torch
import torch.distributed as dist

from actors.remote_errors import as_rlad_error
from rlad.errors import RladError

T = TypeVar("T")

# The broker answers within its long poll of 10 s, with nothing if it must. How long a batch may take is the driver's to say, and it tells the broker.
_ANSWER_TIMEOUT_S = 120.0


class AgreedError(Exception):
    """An error of one rank that all ranks know of, so that they end together and none waits for another."""

    def __init__(self, error: RladError) -> None:
        super().__init__(str(error))
        self.error = error


def together(action: Callable[[], T]) -> T:
    """Do something that can fail on one rank alone, and fail on all if it failed on any. Collective.

    Raises:
        AgreedError: with this rank's error, or another's where this one had none.
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
        raise AgreedError(error or next(each for each in errors if each is not None))
    return result


def decided_by_first(choice: int) -> int:
    """Rank 0's choice, on every rank. Collective."""
    shared = torch.tensor(choice, device=_device())
    dist.broadcast(shared, 0)
    return int(shared)


def answer(ref: Any, who: str) -> Any:
    """What a remote call returns, within the deadline of one that answers at once or after a long poll.

    Raises:
        RladError: what it raised, or that there was no answer.
    """
    try:
        return ray.get(ref, timeout=_ANSWER_TIMEOUT_S)
    except Exception as error:
        raise as_rlad_error(error, who=who) from error


def _device() -> torch.device:
    return ray.train.torch.get_device() if dist.get_backend() == "nccl" else torch.device("cpu")
