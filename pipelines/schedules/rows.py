"""Tables of the schedule store, and the conversion between their rows and records."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from pipelines.schedules.records import CronHistory, Schedule, Tick
from rlad.config.load import validated
from rlad.config.schedule import ScheduleConfig

TABLES = sa.MetaData()
SCHEDULES = sa.Table(
    "rlad_schedules",
    TABLES,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("evaluation_fingerprint", sa.String(64), nullable=False),
    sa.Column("is_paused", sa.Boolean, nullable=False),
    sa.Column("active_since", sa.Float(53), nullable=False),
    sa.Column("lease_token", sa.BigInteger, nullable=False),
    sa.Column("lease_owner", sa.String(200)),
    sa.Column("lease_expires_at", sa.Float(53)),
)
TICKS = sa.Table(
    "rlad_ticks",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("schedule", sa.String(40), nullable=False, index=True),
    sa.Column("run_id", sa.String(80), unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("scheduled_at", sa.Float(53), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)
SEEN = sa.Table(
    "rlad_seen_files",
    TABLES,
    sa.Column("schedule", sa.String(40), primary_key=True),
    sa.Column("path", sa.String(1024), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(80), nullable=False),
)
_TICK_JSON = TypeAdapter(Tick)


def read_schedules(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Schedule]:
    """Read the schedules that match the conditions, sorted by name."""
    rows = connection.execute(SCHEDULES.select().where(*where).order_by(SCHEDULES.c.name)).all()
    return [_schedule_of(row) for row in rows]


def read_ticks(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Tick]:
    """Read the ticks that match the conditions, oldest first."""
    rows = connection.execute(TICKS.select().where(*where).order_by(TICKS.c.id)).all()
    return [_TICK_JSON.validate_json(row.record) for row in rows]


def read_cron_history(connection: sa.Connection, name: str) -> CronHistory:
    """Read the latest scheduled times of a schedule's cron ticks."""
    is_refused = TICKS.c.status == "refused"
    opened = sa.func.max(sa.case((~is_refused, TICKS.c.scheduled_at)))
    refused = sa.func.max(sa.case((is_refused, TICKS.c.scheduled_at)))
    query = sa.select(opened, refused).where(TICKS.c.schedule == name, TICKS.c.kind == "cron")
    last_opened, last_refused = connection.execute(query).one()
    return CronHistory(last_opened=last_opened, last_refused=last_refused)


def tick_json(tick: Tick) -> str:
    """Return the JSON of a tick for the column `record`."""
    return _TICK_JSON.dump_json(tick).decode()


def _schedule_of(row: Any) -> Schedule:
    return Schedule(
        config=validated(ScheduleConfig, json.loads(row.config), where=f"schedule {row.name}"),
        evaluation_fingerprint=row.evaluation_fingerprint,
        is_paused=row.is_paused,
        active_since=row.active_since,
        lease_owner=row.lease_owner,
        lease_expires_at=row.lease_expires_at,
    )
