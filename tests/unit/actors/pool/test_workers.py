"""Worker states: every allowed transition, every forbidden one, and the counts they change."""

from __future__ import annotations

import pytest

from actors.pool.workers import TERMINAL_STATES, TRANSITIONS, PoolState, Worker, WorkerSet, WorkerState

STARTING, READY, CANCELLED = WorkerState.STARTING, WorkerState.READY, WorkerState.CANCELLED
DRAINING, RETIRING = WorkerState.DRAINING, WorkerState.RETIRING
LOST, STOPPED = WorkerState.LOST, WorkerState.STOPPED

ALLOWED = {
    (STARTING, READY),
    (STARTING, CANCELLED),
    (STARTING, LOST),
    (STARTING, STOPPED),
    (READY, DRAINING),
    (READY, LOST),
    (READY, STOPPED),
    (CANCELLED, STOPPED),
    (DRAINING, RETIRING),
    (DRAINING, LOST),
    (DRAINING, STOPPED),
    (RETIRING, STOPPED),
}
PATHS = {
    STARTING: [],
    READY: [READY],
    CANCELLED: [CANCELLED],
    DRAINING: [READY, DRAINING],
    RETIRING: [READY, DRAINING, RETIRING],
    LOST: [LOST],
    STOPPED: [STOPPED],
}


def worker_in(state: WorkerState, workers: WorkerSet) -> Worker:
    worker = Worker(name=f"w-{state}", number=0)
    workers.add(worker)
    for step in PATHS[state]:
        workers.move(worker, step)
    assert worker.state is state
    return worker


@pytest.mark.parametrize("target", WorkerState)
@pytest.mark.parametrize("source", WorkerState)
def test_only_the_listed_transitions_are_allowed(source: WorkerState, target: WorkerState) -> None:
    workers = WorkerSet()
    worker = worker_in(source, workers)
    if (source, target) in ALLOWED:
        workers.move(worker, target)
        assert worker.state is target
    else:
        with pytest.raises(ValueError, match=f"worker w-{source} cannot change from {source} to {target}"):
            workers.move(worker, target)
        assert worker.state is source


def test_every_state_has_an_entry_and_terminal_states_have_no_exit() -> None:
    assert TRANSITIONS.keys() == set(WorkerState)
    assert {state for state, targets in TRANSITIONS.items() if not targets} == TERMINAL_STATES == {LOST, STOPPED}


@pytest.mark.parametrize(
    ("state", "counts", "num_active"),
    [
        (STARTING, (0, 1, 0), 1),
        (CANCELLED, (0, 1, 0), 0),
        (READY, (1, 0, 0), 1),
        (DRAINING, (0, 0, 1), 0),
        (RETIRING, (0, 0, 1), 0),
        (LOST, (0, 0, 0), 0),
        (STOPPED, (0, 0, 0), 0),
    ],
)
def test_pool_state_counts_a_worker_once(state: WorkerState, counts: tuple[int, int, int], num_active: int) -> None:
    workers = WorkerSet()
    worker = worker_in(state, workers)
    ready, starting, draining = counts
    assert workers.state(target=5) == PoolState(target=5, ready=ready, starting=starting, draining=draining)
    assert workers.num_active == num_active
    expected = [] if state in TERMINAL_STATES else [worker]
    assert (workers.in_state(state), list(workers)) == (expected, expected)
    assert workers.get(worker.name) is (None if state in TERMINAL_STATES else worker)


def test_counts_add_up_over_several_workers() -> None:
    workers = WorkerSet()
    for state in WorkerState:
        worker_in(state, workers)
    assert workers.state(target=1) == PoolState(target=1, ready=1, starting=2, draining=2)
    assert [worker.state for worker in workers] == [STARTING, READY, CANCELLED, DRAINING, RETIRING]
    assert workers.num_active == 2
