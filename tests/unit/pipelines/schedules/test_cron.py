"""Times that a person with a calendar of Berlin would write down."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from pipelines.schedules.cron import due, next_fire_time, next_fire_times, parse_cron
from rlad.errors import ConfigError


def times(cron: str, after: str, count: int, timezone: str = "Europe/Berlin") -> list[str]:
    """As UTC."""
    trigger = parse_cron(cron, timezone)
    return [
        each.astimezone(UTC).isoformat()[:16]
        for each in islice(next_fire_times(trigger, datetime.fromisoformat(after)), count)
    ]


def test_a_night_keeps_its_hour_when_the_clock_changes() -> None:
    assert times("0 4 * * *", "2026-03-28T00:00Z", 3) == ["2026-03-28T03:00", "2026-03-29T02:00", "2026-03-30T02:00"]
    assert times("0 4 * * *", "2026-10-24T00:00Z", 3) == ["2026-10-24T02:00", "2026-10-25T03:00", "2026-10-26T03:00"]


def test_a_time_that_the_clock_skips_in_spring_comes_once_and_as_late_as_it_was_skipped() -> None:
    assert times("30 2 * * *", "2026-03-28T12:00Z", 2) == ["2026-03-29T01:30", "2026-03-30T00:30"]
    told = next_fire_time(parse_cron("30 2 * * *", "Europe/Berlin"), datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert told is not None
    assert told.isoformat() == "2026-03-29T03:30:00+02:00"


def test_a_time_that_comes_twice_in_autumn_ticks_once() -> None:
    assert times("30 2 * * *", "2026-10-24T12:00Z", 2) == ["2026-10-25T00:30", "2026-10-26T01:30"]
    assert times("*/30 2 * * *", "2026-10-24T12:00Z", 3) == ["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-26T01:00"]


def test_the_night_after_the_doubled_hour_is_not_skipped_although_asked_for_from_within_it() -> None:
    assert times("0 1 * * *", "2026-10-25T01:10Z", 2) == ["2026-10-26T00:00", "2026-10-27T00:00"]


def test_every_hour_means_every_hour_also_the_one_that_comes_twice() -> None:
    assert times("0 * * * *", "2026-10-24T23:30Z", 4) == [
        "2026-10-25T00:00",
        "2026-10-25T01:00",
        "2026-10-25T02:00",
        "2026-10-25T03:00",
    ]


@pytest.mark.parametrize(
    ("weekday", "days"),
    [
        ("0", ["25", "01"]),
        ("7", ["25", "01"]),
        ("1", ["26", "02"]),
        ("sun", ["25", "01"]),
        ("5-7", ["23", "24"]),
        ("1-5/2", ["26", "28"]),
    ],
)
def test_days_of_the_week_count_as_cron_counts_them(weekday: str, days: list[str]) -> None:
    """2026-10-25 is a Sunday."""
    after = "2026-10-21T12:00+00:00" if weekday == "5-7" else "2026-10-24T12:00+00:00"
    assert [each[8:10] for each in times(f"0 12 * * {weekday}", after, 2)] == days


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 2 * *", "Europe/Berlin", "five cron fields"),
        ("0 2 1 * 1", "Europe/Berlin", "add two schedules"),
        ("0 25 * * *", "Europe/Berlin", "no cron fields"),
        ("0 2 * * *", "Europe/Berlyn", "no time zone 'Europe/Berlyn'"),
        ("0 2 * * 6-1", "Europe/Berlin", "run backwards"),
    ],
)
def test_what_is_no_schedule_is_refused(cron: str, timezone: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_cron(cron, timezone)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-05-{text}:00+00:00")


NIGHTLY, HOUR = parse_cron("0 2 * * *", "Etc/UTC"), timedelta(hours=1)


def test_nothing_is_due_before_its_time() -> None:
    assert due(NIGHTLY, after=at("10T02:00"), now=at("11T01:59"), grace=HOUR) is None


def test_a_tick_is_due_from_its_time_on_and_late_past_the_grace() -> None:
    for now, is_late in (("11T02:00", False), ("11T03:00", False), ("11T03:01", True)):
        found = due(NIGHTLY, after=at("10T02:00"), now=at(now), grace=HOUR)
        assert found is not None
        assert (found.scheduled_at, found.coalesced, found.is_late) == (at("11T02:00"), 0, is_late)


def test_missed_ticks_are_one() -> None:
    found = due(NIGHTLY, after=at("10T02:00"), now=at("14T02:30"), grace=HOUR)
    assert found is not None
    assert (found.scheduled_at, found.coalesced, found.is_late) == (at("14T02:00"), 3, False)


def test_a_year_of_missed_minutes_is_one_tick_too() -> None:
    found = due(
        parse_cron("* * * * *", "Etc/UTC"), after=datetime(2025, 5, 1, tzinfo=UTC), now=at("14T02:30"), grace=HOUR
    )
    assert found is not None
    assert (found.scheduled_at, found.is_late) == (at("14T02:30"), False)
    assert found.coalesced >= 1000
