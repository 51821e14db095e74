"""When a schedule ticks: cron fields on a place's wall clock, through APScheduler's trigger.

Three things that the trigger leaves open are settled here. Days of the week count as cron counts them (0 and 7 are Sunday; APScheduler's 0 is Monday), so
the same fields mean the same to Kubernetes. An hour that the clock goes through twice in autumn ticks once, unless every hour ticks anyway. And both day of
the month and day of the week are refused together, since cron takes either and APScheduler both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger

from rlad.errors import ConfigError

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Ticks that are counted one by one; a schedule that slept through more of them has missed "at least so many".
_MOST_COUNTED = 1000


class WallClockTrigger(CronTrigger):
    """A cron trigger that passes an hour which comes twice only once, unless its hours are all hours."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        fires_hourly = str(next(field for field in self.fields if field.name == "hour")).startswith("*")
        found = self._as_the_clock_says(super().get_next_fire_time(previous_fire_time, now))
        while found is not None and not fires_hourly and found.fold:
            found = self._as_the_clock_says(super().get_next_fire_time(found, found))
        return found

    def _as_the_clock_says(self, found: datetime | None) -> datetime | None:
        """The trigger hands on `fold` to days that have no such hour, and names times that the clock skips in spring."""
        return None if found is None else found.astimezone(UTC).astimezone(self.timezone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a look at the clock came to.

    Attributes:
        scheduled_at: the last time that is not in the future.
        coalesced: earlier ones since the last tick, which this one stands for.
        is_late: by more than the schedule allows, so it is missed.
    """

    scheduled_at: datetime
    coalesced: int
    is_late: bool


def parse_cron(cron: str, timezone: str) -> WallClockTrigger:
    """The trigger of five cron fields.

    Raises:
        ConfigError: what is wrong with them, or no such time zone.
    """
    fields = cron.split()
    if len(fields) != 5:
        raise ConfigError(f"a schedule has five cron fields, as '0 2 * * *' for every night at two; got {cron!r}")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ConfigError(
            f"day of the month and day of the week are both given in {cron!r}, and cron programs differ on what that means: add two schedules"
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"no time zone {timezone!r}: expected a name as Europe/Berlin") from error
    try:
        return WallClockTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=_as_names(weekday), timezone=zone
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{cron!r} are no cron fields: {error}") from error


def next_fire_time(trigger: WallClockTrigger, after: datetime) -> datetime | None:
    """The first time after `after`; None of a date that never comes."""
    return next(next_fire_times(trigger, after), None)


def next_fire_times(trigger: WallClockTrigger, after: datetime) -> Iterator[datetime]:
    """All times after `after`, on the trigger's own clock."""
    zone, previous = trigger.timezone, after.astimezone(UTC)
    while True:
        found = trigger.get_next_fire_time(None, (previous + timedelta(microseconds=1)).astimezone(zone))
        if found is None:
            return
        yield found
        previous = found.astimezone(UTC)


def due(trigger: WallClockTrigger, *, after: datetime, now: datetime, grace: timedelta) -> Due | None:
    """What a schedule that last ticked at `after` has to do now: at most one tick, however many were missed."""
    passed: list[datetime] = []
    for fire in next_fire_times(trigger, after):
        if fire > now:
            break
        passed.append(fire)
        if len(passed) == _MOST_COUNTED:  # look at the end of a long sleep instead
            passed += list(takewhile(lambda late: late <= now, next_fire_times(trigger, max(fire, now - grace))))[-1:]
            break
    if not passed:
        return None
    return Due(scheduled_at=passed[-1], coalesced=len(passed) - 1, is_late=now - passed[-1] > grace)


def _as_names(weekday: str) -> str:
    """Days of the week by name. A range may run over Sunday, as `5-7`."""
    parts = []
    for part in weekday.lower().split(","):
        found = re.fullmatch(r"([0-7])(?:-([0-7]))?(/[0-9]+)?", part)
        if found is None:
            parts.append(part)
            continue
        first, last, step = int(found[1]), found[2], found[3]
        if step and last is None:
            raise ConfigError(f"the day of the week {part!r} steps from one day: give a range, as 1-5{step}")
        days = range(first, (int(last) if last is not None else first) + 1)
        if not days:
            raise ConfigError(
                f"the days of the week {part!r} run backwards: give the earlier one first (7 is Sunday too)"
            )
        parts += [_WEEKDAYS[day] for day in days[:: int(step[1:]) if step else 1]]
    return ",".join(dict.fromkeys(parts))
