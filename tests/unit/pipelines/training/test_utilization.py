from __future__ import annotations

import pytest

from pipelines.training.utilization import BusyTime, idle_shares


def test_idle_share_of_two_workers_by_hand() -> None:
    before, after = {"rollout": BusyTime(busy_s=10.0, workers=2)}, {"rollout": BusyTime(busy_s=22.0, workers=2)}
    assert idle_shares(before, after, 8.0) == {"idle/rollout": pytest.approx(0.25)}


def test_a_pool_needs_two_readings() -> None:
    assert idle_shares({}, {"teacher": BusyTime(busy_s=3.0, workers=1)}, 8.0) == {}


def test_a_replaced_replica_has_no_share_for_one_step() -> None:
    assert (
        idle_shares({"teacher": BusyTime(busy_s=30.0, workers=1)}, {"teacher": BusyTime(busy_s=2.0, workers=1)}, 8.0)
        == {}
    )


def test_the_share_of_a_pool_that_shrank_is_clamped_to_zero() -> None:
    before, after = {"rollout": BusyTime(busy_s=0.0, workers=3)}, {"rollout": BusyTime(busy_s=20.0, workers=1)}
    assert idle_shares(before, after, 8.0) == {"idle/rollout": 0.0}


def test_a_pool_without_workers_has_no_share() -> None:
    assert (
        idle_shares({"verifier": BusyTime(busy_s=0.0, workers=1)}, {"verifier": BusyTime(busy_s=0.0, workers=0)}, 8.0)
        == {}
    )
