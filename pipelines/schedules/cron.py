"""Times of a schedule: five cron fields on the wall clock of a time zone, computed by cronsim.

Clock changes follow Debian's cron, with one difference: only an hour field that covers all 24 hours counts as "every
hour". Debian also counts `*/2`.

- Every hour (`0 * * * *`, `*/15 * * * *`): a tick whenever the clock shows a matching minute. An hour that the clock
  skips has no tick; an hour that it repeats has its ticks twice. (If the minute field names one minute, a repeated half
  hour, as on Lord Howe Island, has one tick.)
- Fixed hours (`30 2 * * *`, `0 */2 * * *`): a time that the clock skips ticks once, at the next valid moment (02:30
  becomes 03:00). A time that the clock repeats ticks once, at its first occurrence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from rlad.config.schedule import ScheduleConfig
from rlad.errors import ConfigError

# Upper bound of `Due.coalesced`: older ticks are not enumerated.
_MAX_COUNTED = 1000
_HOURS_PER_DAY = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class CronSchedule:
    """Parsed cron fields and their time zone. Made by `parse_cron`.

    Attributes:
        expression: Five cron fields in the form that gives cronsim the clock-change rules of this module.
        timezone: Time zone of the wall clock.
    """

    expression: str
    timezone: ZoneInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A tick that is due.

    Attributes:
        scheduled_at: Latest scheduled time that is not in the future.
        coalesced: Number of earlier scheduled times since the last tick; this tick replaces them.
        is_late: True if the tick is later than the schedule's grace period, so it is recorded as missed.
    """

    scheduled_at: datetime
    coalesced: int
    is_late: bool


def parse_cron(cron: str, timezone: str) -> CronSchedule:
    """Parse five cron fields.

    Raises:
        ConfigError: The fields are invalid or never match a date, or the time zone is unknown.
    """
    fields = cron.split()
    if len(fields) != 5:
        raise ConfigError(f"cron requires five cron fields, for example '0 2 * * *' for 02:00 every day; got {cron!r}")
    _, _, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ConfigError(
            f"cron {cron!r} sets both day of the month and day of the week, which cron programs combine differently: "
            "add two schedules"
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"unknown time zone {timezone!r}: expected an IANA name such as Europe/Berlin") from error
    weekday = _portable_weekdays(weekday)
    try:
        parsed = CronSim(" ".join([*fields[:4], weekday]), datetime.now(UTC))
    except CronSimError as error:
        raise ConfigError(f"invalid cron {cron!r}: {error}") from error
    # cronsim applies its rules for fixed times to fields that do not start with a star.
    hours = "*" if len(parsed.hours) == _HOURS_PER_DAY else _listed(parsed.hours)
    return CronSchedule(expression=f"{_listed(parsed.minutes)} {hours} {day} {month} {weekday}", timezone=zone)


def next_fire_time(schedule: CronSchedule, after: datetime) -> datetime | None:
    """Return the first time after `after`, or None if the fields never match a date."""
    return next(next_fire_times(schedule, after), None)


def next_fire_times(schedule: CronSchedule, after: datetime) -> Iterator[datetime]:
    """Yield all times after `after`, in order, in the schedule's time zone."""
    for found in CronSim(schedule.expression, after.astimezone(schedule.timezone)):
        # cronsim can return a midnight that the clock skips; the conversion gives the moment that it stands for.
        moment = found.astimezone(UTC)
        # In a repeated hour cronsim starts from its first pass, which may be before `after`.
        if moment > after:
            yield moment.astimezone(schedule.timezone)


def scheduled_times(config: ScheduleConfig, after: datetime) -> Iterator[datetime]:
    """Yield the times of a schedule after `after`, from its start date to its end date, in its time zone."""
    start, end = config.start_at, config.end_at
    if start is not None:
        after = max(after, start - timedelta(seconds=1))  # a time at the start date counts
    times = next_fire_times(parse_cron(config.cron, config.timezone), after)
    return times if end is None else takewhile(lambda time: time <= end, times)


def due(
    schedule: CronSchedule, *, after: datetime, now: datetime, grace: timedelta, in_order: bool = False
) -> Due | None:
    """Return the tick that is due, or None. Several missed times are coalesced into one tick.

    Args:
        after: Time of the last tick.
        now: Present time.
        grace: Delay from which a tick counts as missed.
        in_order: Return the earliest time within the grace period instead of the latest.
    """
    passed: list[datetime] = []
    for fire in next_fire_times(schedule, after):
        if fire > now:
            break
        passed.append(fire)
        if len(passed) == _MAX_COUNTED:  # skip to the end of a long interval
            passed += list(takewhile(lambda late: late <= now, next_fire_times(schedule, max(fire, now - grace))))[-1:]
            break
    if not passed:
        return None
    if in_order:
        earlier = sum(now - fire > grace for fire in passed[:-1])
        return Due(scheduled_at=passed[earlier], coalesced=earlier, is_late=now - passed[earlier] > grace)
    return Due(scheduled_at=passed[-1], coalesced=len(passed) - 1, is_late=now - passed[-1] > grace)


def _listed(values: set[int]) -> str:
    return ",".join(map(str, sorted(values)))


def _portable_weekdays(weekday: str) -> str:
    """Check the day-of-week field for what cron programs read differently, and write a Sunday at a range's end as 7."""
    for part in weekday.split(","):
        if re.fullmatch(r"[0-9A-Za-z]+/[0-9]+", part):
            step = part.partition("/")[2]
            raise ConfigError(f"the day of the week {part!r} has a step without a range: give a range, as 1-5/{step}")
    return re.sub(r"-sun\b", "-7", weekday, flags=re.IGNORECASE)
