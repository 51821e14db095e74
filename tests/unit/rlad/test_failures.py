"""Failure policy: the table of responses with their bounds, and pools over all events and all small counts."""

from __future__ import annotations

import itertools

import pytest

from rlad.errors import DeadlineError, EngineError, QuotaError, VocabularyMismatchError, WorkerLostError
from rlad.failures import Action, Event, PoolDecision, decide, decide_for_pool, event_of_attempt, event_of_call

LOST, DRAINED_LOST, FAILED = Event.WORKER_LOST, Event.DRAINING_WORKER_LOST, Event.REPLACEMENT_FAILED
GROW, CANCEL = Event.GROWTH_FAILED, Event.START_CANCELLED
REPLACE, CONTINUE, END = Action.REPLACE, Action.CONTINUE, Action.END
POOL_EVENTS = (LOST, DRAINED_LOST, FAILED, GROW, CANCEL)


@pytest.mark.parametrize(
    ("event", "within", "beyond"),
    [
        (Event.HEARTBEAT_MISSED, Action.WAIT, REPLACE),
        (Event.WORKER_SLOW, Action.WAIT, REPLACE),
        (Event.CALL_LOST, Action.RETRY, Action.REISSUE),
        (Event.CALL_REFUSED, Action.RETRY, Action.RETRY),
        (Event.CALL_LATE, Action.REISSUE, Action.REISSUE),
        (Event.ATTEMPT_FAILED, Action.REISSUE, Action.DROP),
        (Event.GROUP_FAILED, Action.DROP, END),
        (Event.RESPONSE_UNJUDGED, Action.DROP, END),
        (Event.UPDATE_NOT_FINITE, Action.DROP, END),
        (LOST, REPLACE, CONTINUE),
        (FAILED, REPLACE, CONTINUE),
        (DRAINED_LOST, CONTINUE, CONTINUE),
        (GROW, CONTINUE, CONTINUE),
        (CANCEL, CONTINUE, CONTINUE),
        (Event.PERMANENT, END, END),
    ],
)
def test_response_changes_after_the_budget(event: Event, within: Action, beyond: Action) -> None:
    assert [decide(event, happened=times, budget=2) for times in (1, 2, 3)] == [within, within, beyond]
    assert decide(event) is beyond, "no budget was given"


def test_fraction_is_a_budget() -> None:
    responses, fraction = 33, 0.5
    decisions = [decide(Event.RESPONSE_UNJUDGED, happened=failed, budget=fraction * responses) for failed in (16, 17)]
    assert decisions == [Action.DROP, END]


@pytest.mark.parametrize(
    ("error", "of_call", "of_attempt"),
    [
        (WorkerLostError("gone"), Event.CALL_LOST, Event.ATTEMPT_FAILED),
        (DeadlineError("late"), Event.CALL_LATE, Event.ATTEMPT_FAILED),
        (QuotaError("full"), Event.CALL_REFUSED, Event.PERMANENT),
        (EngineError("too long"), Event.PERMANENT, Event.PERMANENT),
        (VocabularyMismatchError("other"), Event.PERMANENT, Event.PERMANENT),
        (ValueError("bug"), Event.PERMANENT, Event.PERMANENT),
    ],
)
def test_errors_are_classified(error: Exception, of_call: Event, of_attempt: Event) -> None:
    assert (event_of_call(error), event_of_attempt(error)) == (of_call, of_attempt)


@pytest.mark.parametrize(
    ("event", "ready", "starting", "target", "restarts_left", "action", "new_target", "new_restarts_left"),
    [
        # A lost worker is replaced while the pool is below its target and the budget lasts.
        (LOST, 0, 0, 1, 1, REPLACE, 1, 0),
        (LOST, 1, 0, 2, 5, REPLACE, 2, 4),
        (LOST, 1, 1, 3, 1, REPLACE, 3, 0),
        (LOST, 0, 0, 1, 0, END, 1, 0),
        (LOST, 1, 0, 2, 0, CONTINUE, 2, 0),
        (LOST, 0, 1, 2, 0, CONTINUE, 2, 0),
        # The pool has shrunk meanwhile, so that the remaining workers reach the target.
        (LOST, 1, 0, 1, 3, CONTINUE, 1, 3),
        (LOST, 0, 1, 1, 3, CONTINUE, 1, 3),
        (LOST, 2, 0, 1, 3, CONTINUE, 1, 3),
        # A worker that is lost while it drains is not replaced.
        (DRAINED_LOST, 1, 0, 1, 3, CONTINUE, 1, 3),
        (DRAINED_LOST, 1, 0, 2, 3, CONTINUE, 2, 3),
        (DRAINED_LOST, 0, 0, 1, 0, END, 1, 0),
        # A replacement that does not start is retried, at the cost of one restart each time.
        (FAILED, 0, 0, 1, 2, REPLACE, 1, 1),
        (FAILED, 0, 0, 1, 0, END, 1, 0),
        (FAILED, 1, 0, 2, 0, CONTINUE, 2, 0),
        (FAILED, 1, 0, 1, 2, CONTINUE, 1, 2),
        # A worker that was added by a resize is tried once, and never costs a restart.
        (GROW, 1, 0, 2, 3, CONTINUE, 1, 3),
        (GROW, 0, 1, 2, 0, CONTINUE, 1, 0),
        (GROW, 0, 0, 2, 3, END, 1, 3),
        # A cancelled start changes nothing, unless it was the last hope of the callers that wait.
        (CANCEL, 1, 0, 1, 3, CONTINUE, 1, 3),
        (CANCEL, 0, 1, 2, 3, CONTINUE, 2, 3),
        (CANCEL, 0, 0, 1, 3, END, 1, 3),
    ],
)
def test_pool_decision(
    event: Event,
    ready: int,
    starting: int,
    target: int,
    restarts_left: int,
    action: Action,
    new_target: int,
    new_restarts_left: int,
) -> None:
    decision = decide_for_pool(event, ready=ready, starting=starting, target=target, restarts_left=restarts_left)
    assert decision == PoolDecision(action=action, target=new_target, restarts_left=new_restarts_left)


@pytest.mark.parametrize("event", POOL_EVENTS)
def test_invariants_hold_for_all_small_pools(event: Event) -> None:
    for ready, starting, target, restarts_left in itertools.product(range(4), range(4), range(1, 5), range(4)):
        decision = decide_for_pool(event, ready=ready, starting=starting, target=target, restarts_left=restarts_left)
        is_replaced = decision.action is REPLACE
        # Callers never wait for a pool without workers, and a pool with workers is never given up.
        assert (decision.action is END) == (ready + starting + is_replaced == 0)
        # Each replacement costs one restart; nothing else does.
        assert decision.restarts_left == restarts_left - is_replaced >= 0
        # Replacements never exceed the target, and only failed growth changes the target.
        assert not is_replaced or ready + starting < target
        assert decision.target == target - (event is GROW)
        # A lost worker, or a failed replacement, is replaced whenever both the target and the budget allow it.
        assert is_replaced == (event in (LOST, FAILED) and ready + starting < target and restarts_left > 0)


def test_budget_of_two_allows_exactly_two_replacements() -> None:
    restarts_left, actions = 2, []
    for _ in range(4):
        decision = decide_for_pool(LOST, ready=0, starting=0, target=1, restarts_left=restarts_left)
        restarts_left = decision.restarts_left
        actions.append(decision.action)
    assert actions == [REPLACE, REPLACE, END, END]
