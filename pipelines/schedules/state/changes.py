"""Changes of schedules: who changed which setting, when and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipelines.schedules.rows import CHANGES
from rlad.credentials import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleChange:
    """One change of a schedule.

    Attributes:
        changed_at: Time of the change, in seconds since the epoch.
        author: User and host.
        action: Kind of the change: added, replaced, edited, paused or resumed.
        settings: Former and new value by dotted setting; empty if no setting changed.
        reason: Reason that the author gave; None without one.
    """

    changed_at: float
    author: str
    action: str
    settings: dict[str, tuple[Any, Any]]
    reason: str | None


class ChangeLog:
    """Changes of all schedules of a store. Entries are only added, and removed with their schedule."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock

    def record(
        self,
        schedule: str,
        action: str,
        *,
        author: str,
        settings: Mapping[str, tuple[Any, Any]] | None = None,
        reason: str | None = None,
    ) -> None:
        """Add a change. Secrets in the reason are redacted."""
        values = {
            "schedule": schedule,
            "changed_at": self._clock(),
            "author": author[:200],
            "action": action,
            "settings": json.dumps(settings or {}),
            "reason": reason and redact(reason),
        }
        with self._engine.begin() as connection:
            connection.execute(CHANGES.insert().values(**values))

    def of(self, schedule: str) -> list[ScheduleChange]:
        """Return the changes of a schedule, oldest first."""
        query = sa.select(CHANGES).where(CHANGES.c.schedule == schedule).order_by(CHANGES.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            ScheduleChange(
                changed_at=row.changed_at,
                author=row.author,
                action=row.action,
                settings={key: (before, after) for key, (before, after) in json.loads(row.settings).items()},
                reason=row.reason,
            )
            for row in rows
        ]


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the former and new values of the settings that differ, by dotted key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= {f"{key}.{name}": values for name, values in changed_settings(old, new).items()}
        elif old != new:
            found[key] = (old, new)
    return found
