"""Failure policy: what happened, and what is done about it. Pure functions, without Ray.

The pools, the clients of teachers and verifiers, the learner and the driver report events with the budget that the
configuration gives them, and act on the decisions. `RESPONSES` is the whole policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from types import MappingProxyType

from rlad.errors import DeadlineError, QuotaError, WorkerLostError


class Event(StrEnum):
    """An event that the policy answers."""

    HEARTBEAT_MISSED = auto()
    """A process did not run when its node's watch looked at it."""
    WORKER_SLOW = auto()
    """A rollout worker generated far fewer tokens than the pool's median."""
    CALL_LOST = auto()
    """A call lost its worker, its replica or its connection."""
    CALL_REFUSED = auto()
    """A call was refused because the caller's quota at a shared teacher is used up."""
    CALL_LATE = auto()
    """A call missed its deadline."""
    ATTEMPT_FAILED = auto()
    """An attempt at a group lost a worker or missed a deadline."""
    GROUP_FAILED = auto()
    """Every attempt at a group failed."""
    RESPONSE_UNJUDGED = auto()
    """The verification of a response timed out or failed."""
    UPDATE_NOT_FINITE = auto()
    """An optimizer update had NaN or infinite gradients."""
    WORKER_LOST = auto()
    """A worker that took work died, became unreachable or was stopped."""
    REPLACEMENT_FAILED = auto()
    """A replacement for a lost worker did not start."""
    DRAINING_WORKER_LOST = auto()
    """A worker died while it finished its last leases."""
    GROWTH_FAILED = auto()
    """A worker that was added by a resize did not start."""
    START_CANCELLED = auto()
    """The start of a worker was cancelled."""
    PERMANENT = auto()
    """An error that a repetition cannot avoid."""


class Action(StrEnum):
    """An action on an event."""

    WAIT = auto()
    """Nothing yet: it may pass."""
    RETRY = auto()
    """Make the same call again."""
    REISSUE = auto()
    """Issue the group again as its next attempt. A late answer to the earlier attempt is refused."""
    REPLACE = auto()
    """End the process, if it still exists, and start another one in its place."""
    CONTINUE = auto()
    """Continue with what is left."""
    DROP = auto()
    """Leave it out, and count it."""
    END = auto()
    """End the run with the error and its last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Actions on an event.

    Attributes:
        within: Action while the budget lasts.
        beyond: Action after that.
    """

    within: Action
    beyond: Action


RESPONSES: Mapping[Event, Response] = MappingProxyType(
    {
        Event.HEARTBEAT_MISSED: Response(within=Action.WAIT, beyond=Action.REPLACE),
        Event.WORKER_SLOW: Response(within=Action.WAIT, beyond=Action.REPLACE),
        Event.CALL_LOST: Response(within=Action.RETRY, beyond=Action.REISSUE),
        Event.CALL_REFUSED: Response(within=Action.RETRY, beyond=Action.RETRY),
        Event.CALL_LATE: Response(within=Action.REISSUE, beyond=Action.REISSUE),
        Event.ATTEMPT_FAILED: Response(within=Action.REISSUE, beyond=Action.DROP),
        Event.GROUP_FAILED: Response(within=Action.DROP, beyond=Action.END),
        Event.RESPONSE_UNJUDGED: Response(within=Action.DROP, beyond=Action.END),
        Event.UPDATE_NOT_FINITE: Response(within=Action.DROP, beyond=Action.END),
        Event.WORKER_LOST: Response(within=Action.REPLACE, beyond=Action.CONTINUE),
        Event.REPLACEMENT_FAILED: Response(within=Action.REPLACE, beyond=Action.CONTINUE),
        Event.DRAINING_WORKER_LOST: Response(within=Action.CONTINUE, beyond=Action.CONTINUE),
        Event.GROWTH_FAILED: Response(within=Action.CONTINUE, beyond=Action.CONTINUE),
        Event.START_CANCELLED: Response(within=Action.CONTINUE, beyond=Action.CONTINUE),
        Event.PERMANENT: Response(within=Action.END, beyond=Action.END),
    }
)


def decide(event: Event, *, happened: float = 1, budget: float = 0) -> Action:
    """Decide what is done about an event.

    Args:
        event: What happened.
        happened: Number of times that it has happened, this one included; of a slow worker, the seconds measured.
        budget: Number of times that it may happen, or the seconds that it may last.
    """
    response = RESPONSES[event]
    return response.within if happened <= budget else response.beyond


def event_of_call(error: BaseException) -> Event:
    """Classify the error of one call to a worker, a verifier or a teacher."""
    match error:
        case WorkerLostError():
            return Event.CALL_LOST
        case QuotaError():
            return Event.CALL_REFUSED
        case DeadlineError():
            return Event.CALL_LATE
        case _:
            return Event.PERMANENT


def event_of_attempt(error: BaseException) -> Event:
    """Classify the error of an attempt at a group. Another attempt may use other workers."""
    return Event.ATTEMPT_FAILED if isinstance(error, WorkerLostError | DeadlineError) else Event.PERMANENT


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDecision:
    """Decision of a pool that has one worker fewer.

    Attributes:
        action: `REPLACE` starts a replacement, `CONTINUE` leaves the remaining workers, and `END` fails all
            callers: no worker is left and none may be started.
        target: Target number of workers from now on.
        restarts_left: Remaining restart budget from now on.
    """

    action: Action
    target: int
    restarts_left: int


def decide_for_pool(event: Event, *, ready: int, starting: int, target: int, restarts_left: int) -> PoolDecision:
    """Decide what a pool does after an event that cost it a worker.

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
    is_below_target = ready + starting < target
    action = decide(event, budget=restarts_left if is_below_target else 0)
    if action is Action.REPLACE:
        return PoolDecision(action=action, target=target, restarts_left=restarts_left - 1)
    if ready + starting == 0:
        action = Action.END
    return PoolDecision(action=action, target=target - (event is Event.GROWTH_FAILED), restarts_left=restarts_left)
