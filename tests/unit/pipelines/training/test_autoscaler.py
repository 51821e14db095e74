from __future__ import annotations

from typing import Any

import pytest

from actors.pool.pool import PoolState
from pipelines.training.autoscaler import RolloutAutoscaler
from rlad.config.rollout import RolloutConfig

BUSY = {
    "time/step_s": 10.0,
    "time/generate_s": 8.0,
    "time/score_s": 0.0,
    "time/learn_s": 1.5,
    "time/weights_s": 0.5,
    "idle/rollout": 0.1,
}
HIDDEN = {
    "time/step_s": 10.0,
    "time/generate_s": 0.2,
    "time/score_s": 0.0,
    "time/learn_s": 9.3,
    "time/weights_s": 0.5,
    "idle/rollout": 0.6,
}
SOME = {**BUSY, "time/generate_s": 4.0, "time/learn_s": 5.5}


def state(size: int, **changes: Any) -> PoolState:
    return PoolState(**{"target": size, "ready": size, "starting": 0, "draining": 0} | changes)


def after(steps: list[dict[str, float]], size: int, **settings: Any) -> list[int | None]:
    scaler = RolloutAutoscaler(RolloutConfig(workers=size, **{"autoscale": True, "max_workers": 8, **settings}))
    return [scaler.target_size(step, {"rollout": size, "learner": 1}, state(size)) for step in steps]


def test_three_steps_bound_by_generation_ask_for_one_more_worker_and_then_start_counting_anew() -> None:
    assert after([BUSY] * 6, 3) == [None, None, 4, None, None, 4]


def test_three_steps_in_which_generation_is_hidden_and_idle_give_one_back() -> None:
    assert after([HIDDEN] * 3, 4) == [None, None, 3]


def test_a_step_that_says_something_else_starts_the_count_anew() -> None:
    assert after([BUSY, BUSY, SOME, BUSY, BUSY, BUSY], 3) == [None] * 5 + [4]
    assert after([BUSY, HIDDEN, BUSY, HIDDEN, BUSY, HIDDEN], 3) == [None] * 6


def test_workers_that_are_not_idle_enough_stay() -> None:
    """Four workers idle for 0.3 of the time are 1.2 workers' worth: without one, the other three would have a fifteenth to spare."""
    assert after([{**HIDDEN, "idle/rollout": 0.3}] * 3, 4) == [None] * 3


def test_an_idle_pool_stays_while_the_learner_waits_for_its_last_groups() -> None:
    assert after([{**HIDDEN, "time/generate_s": 1.0}] * 3, 4) == [None] * 3


@pytest.mark.parametrize(
    ("steps", "size", "settings"),
    [([BUSY] * 3, 8, {}), ([HIDDEN] * 3, 2, {"min_workers": 2}), ([BUSY] * 3, 3, {"autoscale": False})],
)
def test_bounds_are_kept_and_a_pool_that_is_not_asked_to_scale_does_not(
    steps: list[dict[str, float]], size: int, settings: dict[str, Any]
) -> None:
    assert after(steps, size, **settings) == [None] * 3


def test_nothing_is_decided_by_steps_in_which_the_pool_was_changing() -> None:
    scaler = RolloutAutoscaler(RolloutConfig(workers=3, autoscale=True, max_workers=8))
    sizes = {"rollout": 3, "learner": 1}
    assert [
        scaler.target_size(BUSY, sizes, each)
        for each in (state(3), state(3), state(4, ready=3, starting=1), state(4), state(4))
    ] == [None] * 5
