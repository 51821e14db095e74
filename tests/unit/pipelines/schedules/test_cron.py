"""Cron times, written down by hand from the wall clock of a place, and compared with a slow enumeration of minutes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo, available_timezones

import pytest

from pipelines.schedules.cron import due, next_fire_time, next_fire_times, parse_cron
from rlad.errors import ConfigError


def times(cron: str, after: str, count: int, timezone: str = "Europe/Berlin") -> list[str]:
    """The next `count` times in UTC, as `YYYY-MM-DDTHH:MM`."""
    schedule = parse_cron(cron, timezone)
    return [
        time.astimezone(UTC).isoformat()[:16]
        for time in islice(next_fire_times(schedule, datetime.fromisoformat(after)), count)
    ]


def test_daily_time_keeps_its_wall_clock_hour_across_both_changes() -> None:
    assert times("0 4 * * *", "2026-03-28T00:00Z", 3) == ["2026-03-28T03:00", "2026-03-29T02:00", "2026-03-30T02:00"]
    assert times("0 4 * * *", "2026-10-24T00:00Z", 3) == ["2026-10-24T02:00", "2026-10-25T03:00", "2026-10-26T03:00"]


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        # 2027-03-28: 02:00 CET (+1) is followed by 03:00 CEST (+2).
        (
            "0 0 * * *",
            "Europe/Berlin",
            "2027-03-27T12:00Z",
            ["2027-03-27T23:00", "2027-03-28T22:00", "2027-03-29T22:00"],
        ),
        ("0 0 1 * *", "Europe/Berlin", "2027-03-15T00:00Z", ["2027-03-31T22:00", "2027-04-30T22:00"]),
        ("0 0 * * 1", "Europe/Berlin", "2027-03-27T12:00Z", ["2027-03-28T22:00", "2027-04-04T22:00"]),
        # 2027-03-14: 02:00 EST (-5) is followed by 03:00 EDT (-4).
        (
            "0 0 * * *",
            "America/New_York",
            "2027-03-13T12:00Z",
            ["2027-03-14T05:00", "2027-03-15T04:00", "2027-03-16T04:00"],
        ),
    ],
)
def test_midnight_after_the_spring_change_is_not_skipped(
    cron: str, timezone: str, after: str, expected: list[str]
) -> None:
    assert times(cron, after, len(expected), timezone) == expected


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        # 02:30 does not exist on 2026-03-29; the next moment that does is 03:00 CEST.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("30 2 * * *", "America/New_York", "2027-03-13T12:00Z", ["2027-03-14T07:00", "2027-03-15T06:30"]),
        # Two skipped times of one hour become one tick.
        ("*/30 2 * * *", "Europe/Berlin", "2027-03-27T12:00Z", ["2027-03-28T01:00", "2027-03-29T00:00"]),
        # A skipped time that moves to another time of the schedule is one tick with it.
        ("0 2,3 * * *", "Europe/Berlin", "2027-03-27T12:00Z", ["2027-03-28T01:00", "2027-03-29T00:00"]),
        (
            "0 */2 * * *",
            "Europe/Berlin",
            "2027-03-27T22:30Z",
            ["2027-03-27T23:00", "2027-03-28T01:00", "2027-03-28T02:00", "2027-03-28T04:00"],
        ),
        # Midnight itself is skipped in Beirut on 2027-03-28 (+2 to +3) and in Havana on 2027-03-14 (-5 to -4).
        ("0 0 * * *", "Asia/Beirut", "2027-03-26T12:00Z", ["2027-03-26T22:00", "2027-03-27T22:00", "2027-03-28T21:00"]),
        ("0 0 * * 0", "Asia/Beirut", "2027-03-27T12:00Z", ["2027-03-27T22:00", "2027-04-03T21:00"]),
        ("0 0 * * *", "America/Havana", "2027-03-13T12:00Z", ["2027-03-14T05:00", "2027-03-15T04:00"]),
        # Lord Howe changes by half an hour: 02:00 (+10:30) is followed by 02:30 (+11) on 2026-10-04.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00Z", ["2026-10-03T15:30", "2026-10-04T15:15"]),
    ],
)
def test_skipped_time_ticks_once_at_the_next_valid_moment(
    cron: str, timezone: str, after: str, expected: list[str]
) -> None:
    assert times(cron, after, len(expected), timezone) == expected


def test_skipped_time_is_reported_as_the_clock_shows_it() -> None:
    found = next_fire_time(parse_cron("30 2 * * *", "Europe/Berlin"), datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert found is not None
    assert found.isoformat() == "2026-03-29T03:00:00+02:00"


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        # 2026-10-25: 03:00 CEST (+2) is followed by 02:00 CET (+1).
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00Z",
            ["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-26T01:00"],
        ),
        (
            "0 */2 * * *",
            "Europe/Berlin",
            "2026-10-24T21:30Z",
            ["2026-10-24T22:00", "2026-10-25T00:00", "2026-10-25T03:00", "2026-10-25T05:00"],
        ),
        # 2026-11-01: 02:00 EDT (-4) is followed by 01:00 EST (-5).
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00Z", ["2026-11-01T05:30", "2026-11-02T06:30"]),
        (
            "0 */2 * * *",
            "America/New_York",
            "2026-11-01T03:00Z",
            ["2026-11-01T04:00", "2026-11-01T07:00", "2026-11-01T09:00"],
        ),
        # Midnight of Sunday takes Beirut back to 23:00 of Saturday; 01:00 takes Havana back to midnight.
        ("30 23 * * *", "Asia/Beirut", "2026-10-24T12:00Z", ["2026-10-24T20:30", "2026-10-25T21:30"]),
        ("0 0 * * *", "America/Havana", "2026-10-31T12:00Z", ["2026-11-01T04:00", "2026-11-02T05:00"]),
        # 02:00 (+11) takes Lord Howe back to 01:30 (+10:30) on 2027-04-04.
        ("45 1 * * *", "Australia/Lord_Howe", "2027-04-03T00:00Z", ["2027-04-03T14:45", "2027-04-04T15:15"]),
    ],
)
def test_repeated_time_ticks_at_its_first_occurrence_only(
    cron: str, timezone: str, after: str, expected: list[str]
) -> None:
    assert times(cron, after, len(expected), timezone) == expected


def test_search_from_within_the_repeated_hour_neither_repeats_nor_skips() -> None:
    assert times("0 1 * * *", "2026-10-25T01:10Z", 2) == ["2026-10-26T00:00", "2026-10-27T00:00"]
    # 02:30 CEST has passed at 02:10 CET: the second 02:30 does not count.
    assert times("30 2 * * *", "2026-10-25T01:10Z", 1) == ["2026-10-26T01:30"]
    assert times("0 3 * * *", "2026-10-25T01:10Z", 1) == ["2026-10-25T02:00"]


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        (
            "0 * * * *",
            "Europe/Berlin",
            "2026-10-24T23:30Z",
            ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"],
        ),
        ("0 */1 * * *", "Europe/Berlin", "2026-10-24T23:30Z", ["2026-10-25T00:00", "2026-10-25T01:00"]),
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2027-03-28T00:15Z",
            ["2027-03-28T00:30", "2027-03-28T01:00", "2027-03-28T01:30"],
        ),
        # Sunday begins at 01:00 in Beirut on 2027-03-28.
        ("0 * * * 0", "Asia/Beirut", "2027-03-27T12:00Z", ["2027-03-27T22:00", "2027-03-27T23:00"]),
        # Lord Howe shows 01:45 twice, half an hour apart; cronsim searches a single minute from hour to hour.
        ("45 * * * *", "Australia/Lord_Howe", "2027-04-03T14:00Z", ["2027-04-03T14:45", "2027-04-03T16:15"]),
    ],
)
def test_every_hour_follows_the_clock_through_a_change(
    cron: str, timezone: str, after: str, expected: list[str]
) -> None:
    assert times(cron, after, len(expected), timezone) == expected


def test_utc_has_no_changes_and_leap_days_are_found() -> None:
    assert times("0 0 * * *", "2027-03-27T12:00Z", 2, "Etc/UTC") == ["2027-03-28T00:00", "2027-03-29T00:00"]
    assert times("0 0 29 2 *", "2027-01-01T00:00Z", 2, "UTC") == ["2028-02-29T00:00", "2032-02-29T00:00"]


def slow_times(minutes: set[int], hours: set[int], zone: ZoneInfo, after: datetime, days: int) -> list[datetime]:
    """Enumerate every minute. With all hours, real minutes are tested; otherwise wall-clock minutes are localised."""
    num_minutes, found = days * 24 * 60, set()
    if len(hours) == 24:
        for index in range(1, num_minutes + 1):
            moment = after + timedelta(minutes=index)
            if moment.astimezone(zone).minute in minutes:
                found.add(moment)
        return sorted(found)
    first = after.astimezone(zone).replace(tzinfo=None) - timedelta(days=1)
    for index in range(num_minutes + 1440):
        wall = first + timedelta(minutes=index)
        if wall.hour in hours and wall.minute in minutes:
            while (moment := wall.replace(tzinfo=zone).astimezone(UTC)).astimezone(zone).replace(tzinfo=None) != wall:
                wall += timedelta(minutes=1)
            found.add(moment)
    return sorted(moment for moment in found if after < moment <= after + timedelta(days=days - 1))


@pytest.mark.parametrize(
    ("timezone", "day"),
    [
        ("Europe/Berlin", "2027-03-27"),
        ("Europe/Berlin", "2026-10-24"),
        ("America/New_York", "2027-03-13"),
        ("America/New_York", "2026-10-31"),
        ("America/Havana", "2027-03-13"),
        ("America/Havana", "2026-10-31"),
        ("Asia/Beirut", "2027-03-27"),
        ("Asia/Beirut", "2026-10-24"),
        ("Australia/Lord_Howe", "2026-10-03"),
        ("Australia/Lord_Howe", "2027-04-03"),
        ("Etc/UTC", "2027-03-27"),
    ],
)
@pytest.mark.parametrize(
    ("cron", "minutes", "hours"),
    [
        ("0 0 * * *", {0}, {0}),
        ("15,45 1-2 * * *", {15, 45}, {1, 2}),
        ("*/20 */2 * * *", {0, 20, 40}, set(range(0, 24, 2))),
        ("30 23,0 * * *", {30}, {0, 23}),
        ("10 * * * *", {10}, set(range(24))),
    ],
)
def test_times_equal_those_of_a_slow_enumeration(
    timezone: str, day: str, cron: str, minutes: set[int], hours: set[int]
) -> None:
    for hour in (0, 11, 22):  # searches start before, in and after the change
        after = datetime.fromisoformat(f"{day}T{hour:02}:40:00+00:00")
        expected = slow_times(minutes, hours, ZoneInfo(timezone), after, 3)
        found = islice(next_fire_times(parse_cron(cron, timezone), after), len(expected))
        assert [time.astimezone(UTC) for time in found] == expected


def changes_of(zone: ZoneInfo, year: int) -> list[date]:
    """Return the days of a year, in UTC, after which the zone has another offset."""
    noons = [datetime(year, 1, 1, 12, tzinfo=UTC) + timedelta(days=day) for day in range(366)]
    offsets = [noon.astimezone(zone).utcoffset() for noon in noons]
    return [noon.date() for noon, before, after in zip(noons, offsets, offsets[1:], strict=False) if before != after]


def first_moment_of(day: date, zone: ZoneInfo) -> datetime:
    """Return the first moment at which the clock shows a day. Offsets of 2027 are multiples of 15 minutes."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=16)
    moments = (start + timedelta(minutes=15 * index) for index in range(4 * 34))
    return next(moment for moment in moments if moment.astimezone(zone).date() == day)


def test_midnight_comes_once_a_day_in_every_time_zone_over_the_changes_of_2027() -> None:
    """Zones without a change are looked at around the end of March."""
    zones = sorted(available_timezones() - {"localtime", "posixrules"})
    assert len(zones) > 400
    changing = 0
    for name in zones:
        zone = ZoneInfo(name)
        changes = changes_of(zone, 2027)
        changing += bool(changes)
        for change in changes or [date(2027, 3, 28)]:
            days = [change + timedelta(days=offset) for offset in (-1, 0, 1, 2, 3)]
            after = first_moment_of(days[0], zone) - timedelta(minutes=1)
            found = [time.astimezone(UTC) for time in islice(next_fire_times(parse_cron("0 0 * * *", name), after), 5)]
            assert found == [first_moment_of(day, zone) for day in days], (name, change)
    assert changing > 100


@pytest.mark.parametrize(
    ("weekday", "days"),
    [
        ("0", ["25", "01"]),
        ("7", ["25", "01"]),
        ("1", ["26", "02"]),
        ("sun", ["25", "01"]),
        ("5-7", ["23", "24"]),
        ("fri-sun", ["23", "24"]),
        ("1-5/2", ["26", "28"]),
    ],
)
def test_days_of_the_week_count_from_sunday_as_in_cron(weekday: str, days: list[str]) -> None:
    """2026-10-25 is a Sunday."""
    after = "2026-10-21T12:00+00:00" if weekday in ("5-7", "fri-sun") else "2026-10-24T12:00+00:00"
    assert [time[8:10] for time in times(f"0 12 * * {weekday}", after, 2)] == days


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 2 * *", "Europe/Berlin", "five cron fields"),
        ("0 0 2 * * *", "Europe/Berlin", "five cron fields"),
        ("0 2 1 * 1", "Europe/Berlin", "add two schedules"),
        ("0 25 * * *", "Europe/Berlin", "Bad hour"),
        ("0 2 30 2 *", "Europe/Berlin", "Bad day-of-month"),
        ("0 2 * * *", "Europe/Berlyn", "unknown time zone 'Europe/Berlyn'"),
        ("0 2 * * 6-1", "Europe/Berlin", "Bad day-of-week"),
        ("0 2 * * 1/2", "Europe/Berlin", "give a range, as 1-5/2"),
    ],
)
def test_invalid_fields_are_refused(cron: str, timezone: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_cron(cron, timezone)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-05-{text}:00+00:00")


NIGHTLY, HOUR = parse_cron("0 2 * * *", "Etc/UTC"), timedelta(hours=1)


def test_no_tick_is_due_before_its_time() -> None:
    assert due(NIGHTLY, after=at("10T02:00"), now=at("11T01:59"), grace=HOUR) is None


def test_tick_is_due_from_its_time_and_late_after_the_grace_period() -> None:
    for now, is_late in (("11T02:00", False), ("11T03:00", False), ("11T03:01", True)):
        found = due(NIGHTLY, after=at("10T02:00"), now=at(now), grace=HOUR)
        assert found is not None
        assert (found.scheduled_at, found.coalesced, found.is_late) == (at("11T02:00"), 0, is_late)


def test_missed_ticks_are_coalesced_into_one() -> None:
    found = due(NIGHTLY, after=at("10T02:00"), now=at("14T02:30"), grace=HOUR)
    assert found is not None
    assert (found.scheduled_at, found.coalesced, found.is_late) == (at("14T02:00"), 3, False)


def test_a_year_of_missed_minutes_is_coalesced_into_one() -> None:
    found = due(
        parse_cron("* * * * *", "Etc/UTC"), after=datetime(2025, 5, 1, tzinfo=UTC), now=at("14T02:30"), grace=HOUR
    )
    assert found is not None
    assert (found.scheduled_at, found.is_late) == (at("14T02:30"), False)
    assert found.coalesced >= 1000
