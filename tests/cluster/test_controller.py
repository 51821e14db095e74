"""Controller of a live run, found by name."""

from __future__ import annotations

import pytest

from actors.controller import PoolBounds, Request, RunState, ask, find_controller, start_controller
from actors.pool.pool import PoolState
from rlad.errors import RunDirectoryError


def test_driver_gets_requests_in_order_and_callers_get_its_state() -> None:
    driver = start_controller("run-1", {"rollout": PoolBounds()})
    command = find_controller("run-1")
    assert ask(command, "state") is None
    pool = PoolState(target=2, ready=1, starting=1, draining=0)
    state = RunState(
        phase="running", step=3, total_steps=9, pools={"rollout": pool}, metrics={"reward/mean": 0.5}, updated_at=1.0
    )
    ask(driver, "publish", state)
    assert ask(command, "state") == state

    ask(command, "request", Request(kind="scale", sizes={"rollout": 8}))
    ask(command, "request", Request(kind="stop", sizes={}))
    assert [ask(driver, "next_request", 5.0) for _ in range(2)] == [
        Request(kind="scale", sizes={"rollout": 8}),
        Request(kind="stop", sizes={}),
    ]
    assert ask(driver, "next_request", 0.05) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"teacher": 2}, "cannot scale 'teacher': this run can scale rollout, verifier"),
        ({"rollout": 0}, "at least one worker; got rollout=0"),
        ({"verifier": 2, "rollout": 7}, "rollout=7 is outside of the bounds in this run's configuration: 1 to 6"),
    ],
)
def test_invalid_request_is_refused_at_once(sizes: dict[str, int], message: str) -> None:
    controller = start_controller(
        f"run-{message[:4]}", {"rollout": PoolBounds(at_least=1, at_most=6), "verifier": PoolBounds()}
    )
    with pytest.raises(RunDirectoryError, match=message):
        ask(controller, "request", Request(kind="scale", sizes=sizes))
    assert ask(controller, "next_request", 0.05) is None


def test_run_that_is_not_alive_is_not_found() -> None:
    with pytest.raises(RunDirectoryError, match="is not running in this cluster"):
        find_controller("unknown")
