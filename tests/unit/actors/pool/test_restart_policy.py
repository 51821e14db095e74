"""Restart policy of a pool, over all events and all small counts."""

from __future__ import annotations

import itertools

import pytest

from actors.pool.restart_policy import PoolEvent, RestartAction, RestartDecision, decide_restart

LOST, DRAINED_LOST = PoolEvent.READY_WORKER_LOST, PoolEvent.DRAINING_WORKER_LOST
RETRY, GROW, CANCEL = PoolEvent.REPLACEMENT_FAILED, PoolEvent.GROWTH_FAILED, PoolEvent.START_CANCELLED
NONE, REPLACE = RestartAction.NONE, RestartAction.REPLACE
SHRINK, GIVE_UP = RestartAction.SHRINK_TARGET, RestartAction.GIVE_UP


@pytest.mark.parametrize(
    ("event", "ready", "starting", "target", "restarts_left", "action", "new_target", "new_restarts_left"),
    [
        # A lost worker is replaced while the pool is below its target and the budget lasts.
        (LOST, 0, 0, 1, 1, REPLACE, 1, 0),
        (LOST, 1, 0, 2, 5, REPLACE, 2, 4),
        (LOST, 1, 1, 3, 1, REPLACE, 3, 0),
        (LOST, 0, 0, 1, 0, GIVE_UP, 1, 0),
        (LOST, 1, 0, 2, 0, NONE, 2, 0),
        (LOST, 0, 1, 2, 0, NONE, 2, 0),
        # The pool has shrunk meanwhile, so that the remaining workers reach the target.
        (LOST, 1, 0, 1, 3, NONE, 1, 3),
        (LOST, 0, 1, 1, 3, NONE, 1, 3),
        (LOST, 2, 0, 1, 3, NONE, 1, 3),
        # A worker that is lost while it drains is not replaced.
        (DRAINED_LOST, 1, 0, 1, 3, NONE, 1, 3),
        (DRAINED_LOST, 1, 0, 2, 3, NONE, 2, 3),
        (DRAINED_LOST, 0, 0, 1, 0, GIVE_UP, 1, 0),
        # A replacement that does not start is retried, at the cost of one restart each time.
        (RETRY, 0, 0, 1, 2, REPLACE, 1, 1),
        (RETRY, 0, 0, 1, 0, GIVE_UP, 1, 0),
        (RETRY, 1, 0, 2, 0, NONE, 2, 0),
        (RETRY, 1, 0, 1, 2, NONE, 1, 2),
        # A worker that was added by a resize is tried once, and never costs a restart.
        (GROW, 1, 0, 2, 3, SHRINK, 1, 3),
        (GROW, 0, 1, 2, 0, SHRINK, 1, 0),
        (GROW, 0, 0, 2, 3, GIVE_UP, 1, 3),
        # A cancelled start changes nothing, unless it was the last hope of the callers that wait.
        (CANCEL, 1, 0, 1, 3, NONE, 1, 3),
        (CANCEL, 0, 1, 2, 3, NONE, 2, 3),
        (CANCEL, 0, 0, 1, 3, GIVE_UP, 1, 3),
    ],
)
def test_decision(
    event: PoolEvent,
    ready: int,
    starting: int,
    target: int,
    restarts_left: int,
    action: RestartAction,
    new_target: int,
    new_restarts_left: int,
) -> None:
    decision = decide_restart(event, ready=ready, starting=starting, target=target, restarts_left=restarts_left)
    assert decision == RestartDecision(action=action, target=new_target, restarts_left=new_restarts_left)


CASES = list(itertools.product(PoolEvent, range(4), range(4), range(1, 5), range(4)))


@pytest.mark.parametrize("event", PoolEvent)
def test_invariants_hold_for_all_small_pools(event: PoolEvent) -> None:
    for _, ready, starting, target, restarts_left in (case for case in CASES if case[0] is event):
        decision = decide_restart(event, ready=ready, starting=starting, target=target, restarts_left=restarts_left)
        is_replaced = decision.action is REPLACE
        # Callers never wait for a pool without workers, and a pool with workers is never given up.
        assert (decision.action is GIVE_UP) == (ready + starting + is_replaced == 0)
        # Each replacement costs one restart; nothing else does.
        assert decision.restarts_left == restarts_left - is_replaced >= 0
        # Replacements never exceed the target, and only failed growth changes the target.
        assert not is_replaced or ready + starting < target
        assert decision.target == target - (event is GROW)
        # A lost worker, or a failed replacement, is replaced whenever both the target and the budget allow it.
        assert is_replaced == (event in (LOST, RETRY) and ready + starting < target and restarts_left > 0)
        # The target only falls without giving up when growth failed.
        assert (decision.action is SHRINK) == (event is GROW and ready + starting > 0)


def test_budget_of_two_allows_exactly_two_replacements() -> None:
    restarts_left, actions = 2, []
    for _ in range(4):
        decision = decide_restart(LOST, ready=0, starting=0, target=1, restarts_left=restarts_left)
        restarts_left = decision.restarts_left
        actions.append(decision.action)
    assert actions == [REPLACE, REPLACE, GIVE_UP, GIVE_UP]
