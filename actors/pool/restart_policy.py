"""Restart policy of an actor pool: decides whether a pool replaces a worker.

The policy is a pure function. `ActorPool` reports events to it and acts on its decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class PoolEvent(Enum):
    """Events after which a pool has one worker fewer."""

    READY_WORKER_LOST = auto()
    """A worker that took work died or became unreachable."""
    DRAINING_WORKER_LOST = auto()
    """A worker died while it finished its last leases."""
    REPLACEMENT_FAILED = auto()
    """A replacement for a lost worker did not start."""
    GROWTH_FAILED = auto()
    """A worker that was added by a resize did not start."""
    START_CANCELLED = auto()
    """The start of a worker was cancelled."""


class RestartAction(Enum):
    """Actions that a pool takes after an event."""

    NONE = auto()
    """Continue with the remaining workers."""
    REPLACE = auto()
    """Start one replacement."""
    SHRINK_TARGET = auto()
    """Continue with the remaining workers and the reduced target."""
    GIVE_UP = auto()
    """No worker is left and none may be started: fail all callers that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDecision:
    """Decision of the restart policy.

    Attributes:
        action: Action to take.
        target: Target number of workers from now on.
        restarts_left: Remaining restart budget from now on.
    """

    action: RestartAction
    target: int
    restarts_left: int


_REPLACED = (PoolEvent.READY_WORKER_LOST, PoolEvent.REPLACEMENT_FAILED)


def decide_restart(event: PoolEvent, *, ready: int, starting: int, target: int, restarts_left: int) -> RestartDecision:
    """Decide what a pool does after an event.

    A lost worker, or a replacement that did not start, is replaced while the pool is below its target and the restart
    budget lasts. A worker that was added by a resize is tried once: its failure reduces the target and costs no
    restart.

    Args:
        event: What happened.
        ready: Number of workers that take work, after the event.
        starting: Number of workers that are starting, after the event. Cancelled starts do not count.
        target: Target number of workers.
        restarts_left: Remaining restart budget.
    """
    if event in _REPLACED and ready + starting < target and restarts_left > 0:
        return RestartDecision(action=RestartAction.REPLACE, target=target, restarts_left=restarts_left - 1)
    if event is PoolEvent.GROWTH_FAILED:
        target -= 1
    if ready + starting == 0:
        action = RestartAction.GIVE_UP
    elif event is PoolEvent.GROWTH_FAILED:
        action = RestartAction.SHRINK_TARGET
    else:
        action = RestartAction.NONE
    return RestartDecision(action=action, target=target, restarts_left=restarts_left)
