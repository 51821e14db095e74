from __future__ import annotations

import pytest

from pipelines.training.utilization import BusyTime, idle_shares


def test_two_workers_that_worked_six_of_eight_seconds_each_were_idle_for_a_quarter() -> None:
    before, after = {"rollout": BusyTime(busy_s=10.0, workers=2)}, {"rollout": BusyTime(busy_s=22.0, workers=2)}
    assert idle_shares(before, after, 8.0) == {"idle/rollout": pytest.approx(0.25)}


def test_a_pool_that_is_seen_first_says_nothing_yet() -> None:
    assert idle_shares({}, {"teacher": BusyTime(busy_s=3.0, workers=1)}, 8.0) == {}


def test_a_replica_that_was_replaced_has_a_clock_of_its_own_and_says_nothing_for_a_step() -> None:
    assert (
        idle_shares({"teacher": BusyTime(busy_s=30.0, workers=1)}, {"teacher": BusyTime(busy_s=2.0, workers=1)}, 8.0)
        == {}
    )


def test_a_pool_that_shrank_is_not_less_than_not_idle() -> None:
    before, after = {"rollout": BusyTime(busy_s=0.0, workers=3)}, {"rollout": BusyTime(busy_s=20.0, workers=1)}
    assert idle_shares(before, after, 8.0) == {"idle/rollout": 0.0}


def test_a_pool_without_workers_says_nothing() -> None:
    assert (
        idle_shares({"verifier": BusyTime(busy_s=0.0, workers=1)}, {"verifier": BusyTime(busy_s=0.0, workers=0)}, 8.0)
        == {}
    )
