"""What a replica grants each client: never more than its quota, whatever the others have."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from actors.teacher.quota import Activity, TeacherStats
from rlad.errors import QuotaError


def stats(activity: Activity) -> TeacherStats:
    return activity.stats(cache_hits=0, cache_misses=0)


def test_a_client_at_its_quota_is_refused_by_name_and_others_are_not() -> None:
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
        assert stats(activity).ongoing == {"greedy": 1}, "what has ended counts no more"


def test_a_group_that_fails_gives_its_place_back() -> None:
    activity = Activity(max_groups_per_client=1)
    with pytest.raises(ZeroDivisionError), activity.of("c"):
        1 / 0  # noqa: B018
    with activity.of("c"):
        pass


def test_without_a_quota_one_client_may_have_everything() -> None:
    activity = Activity(max_groups_per_client=None)
    with ExitStack() as under_way:
        for _ in range(500):
            under_way.enter_context(activity.of("run"))
        assert stats(activity).ongoing_groups == 500


def test_busy_time_is_that_with_at_least_one_group() -> None:
    now = iter([10.0, 12.5, 20.0, 21.0, 30.0])  # begins, ends, begins, is asked, ends
    activity = Activity(max_groups_per_client=None, clock=lambda: next(now))
    with activity.of("a"), activity.of("b"):
        pass
    with activity.of("a"):
        assert stats(activity).busy_s == 2.5 + 1.0
    assert stats(activity).busy_s == 2.5 + 10.0


def test_stats_of_replicas_add_up_client_by_client() -> None:
    one, other = Activity(max_groups_per_client=None), Activity(max_groups_per_client=None)
    with one.of("a"), other.of("a"), other.of("b"):
        one.count(7)
        other.count(5)
        total = one.stats(cache_hits=1, cache_misses=2) + other.stats(cache_hits=3, cache_misses=4)
    assert (total.num_groups, total.num_tokens, total.cache_hits, total.cache_misses) == (2, 12, 4, 6)
    assert total.ongoing == {"a": 2, "b": 1}
