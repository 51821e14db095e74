"""Client quotas and statistics of a teacher replica."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from actors.teacher.quota import Activity, TeacherStats
from rlad.errors import QuotaError


def stats(activity: Activity) -> TeacherStats:
    return activity.stats(cache_hits=0, cache_misses=0)


def test_client_at_its_quota_is_refused_and_others_are_not() -> None:
    activity = Activity(max_groups_per_client=2)
    with ExitStack() as under_way:
        for client in ("greedy", "greedy", "modest"):
            under_way.enter_context(activity.of(client))
        with (
            pytest.raises(
                QuotaError, match="client 'greedy' has reached its quota of 2 groups in progress per replica"
            ),
            activity.of("greedy"),
        ):
            pytest.fail("admitted above the quota")
        assert stats(activity).ongoing == {"greedy": 2, "modest": 1}
        assert (stats(activity).ongoing_groups, stats(activity).refused_groups) == (3, 1)
        under_way.enter_context(activity.of("modest"))
    assert stats(activity).ongoing == {}
    with activity.of("greedy"):
        assert stats(activity).ongoing == {"greedy": 1}, "ended groups no longer count"


def test_failed_group_releases_its_quota() -> None:
    activity = Activity(max_groups_per_client=1)
    with pytest.raises(ZeroDivisionError), activity.of("c"):
        1 / 0  # noqa: B018
    with activity.of("c"):
        pass


def test_client_without_quota_is_not_limited() -> None:
    activity = Activity(max_groups_per_client=None)
    with ExitStack() as under_way:
        for _ in range(500):
            under_way.enter_context(activity.of("run"))
        assert stats(activity).ongoing_groups == 500


def test_busy_time_counts_time_with_at_least_one_group() -> None:
    now = iter([10.0, 12.5, 20.0, 21.0, 30.0])  # begin, end, begin, stats, end
    activity = Activity(max_groups_per_client=None, clock=lambda: next(now))
    with activity.of("a"), activity.of("b"):
        pass
    with activity.of("a"):
        assert stats(activity).busy_s == 2.5 + 1.0
    assert stats(activity).busy_s == 2.5 + 10.0


def test_stats_of_replicas_are_summed_by_client() -> None:
    first, second = Activity(max_groups_per_client=None), Activity(max_groups_per_client=None)
    with first.of("a"), second.of("a"), second.of("b"):
        first.count(7)
        second.count(5)
        total = first.stats(cache_hits=1, cache_misses=2) + second.stats(cache_hits=3, cache_misses=4)
    assert (total.num_groups, total.num_tokens, total.cache_hits, total.cache_misses) == (2, 12, 4, 6)
    assert total.ongoing == {"a": 2, "b": 1}
