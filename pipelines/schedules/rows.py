"""Tables of the schedule store, and the conversion between their rows and records.

A row that does not validate concerns its own schedule only: it is returned as a `BrokenRow`, and the others are read.
Columns are read without SQLAlchemy's conversion of types, which fails for all rows if one value is invalid.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, FiniteFloat, TypeAdapter
from sqlalchemy.exc import DBAPIError

from pipelines.schedules.cron import parse_cron
from pipelines.schedules.records import BrokenRow, CronHistory, Schedule, Tick
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
# Later additions are tables of their own, which a store of an earlier version gets when it is opened.
QUEUES = sa.Table(
    "rlad_queues",
    TABLES,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("slots", sa.Integer, nullable=False),
)
QUEUE_ENTRIES = sa.Table(
    "rlad_queue_entries",
    TABLES,
    sa.Column("schedule", sa.String(40), primary_key=True),
    sa.Column("queue", sa.String(200), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("requested_at", sa.Float(53), nullable=False),
    sa.Column("has_slot", sa.Boolean, nullable=False),
    sa.Column("is_job", sa.Boolean, nullable=False),
    sa.Column("lease_token", sa.BigInteger, nullable=False),
)
TRIGGERS = sa.Table(
    "rlad_triggers",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("schedule", sa.String(40), nullable=False, index=True),
    sa.Column("requested_at", sa.Float(53), nullable=False),
    sa.Column("key", sa.String(200)),
    sa.Column("run_id", sa.String(80)),
)
CHANGES = sa.Table(
    "rlad_schedule_changes",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("schedule", sa.String(40), nullable=False, index=True),
    sa.Column("changed_at", sa.Float(53), nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
)
PAUSES = sa.Table(
    "rlad_pause",  # holds one row while all schedules are paused
    TABLES,
    sa.Column("paused_at", sa.Float(53), primary_key=True),
)
ALL_OF_SCHEDULE = (TICKS, SEEN, QUEUE_ENTRIES, TRIGGERS, CHANGES)
"""Tables whose rows are deleted with their schedule."""
_TICK_JSON = TypeAdapter(Tick)
# SQLite allows one writer at a time; other writers wait up to this long.
_BUSY_S = 30.0
# PostgreSQL, in seconds: a server that does not answer, a statement that waits for another one's lock, a transaction
# whose client has stopped, and a network that drops everything.
_CONNECT_S, _STATEMENT_S, _IDLE_S, _NETWORK_S = 10, 30, 60, 15
_SERVER_SETTINGS = (
    f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_STATEMENT_S}s "
    f"-c idle_in_transaction_session_timeout={_IDLE_S}s"
)


def open_database(url: sa.URL) -> sa.Engine:
    """Connect to a database and create the tables that it lacks."""
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database:
        Path(url.database).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args=_connect_args(url), pool_pre_ping=not is_sqlite)
    if is_sqlite:
        sa.event.listen(engine, "connect", _decode_invalid_text)
    try:
        TABLES.create_all(engine)
    except DBAPIError:
        TABLES.create_all(engine)  # another process created a table at the same time
    return engine


def _connect_args(url: sa.URL) -> dict[str, Any]:
    """Return the driver's arguments that give every wait for the database an end. Those of the URL take precedence."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": _BUSY_S}
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    timeouts = {
        "connect_timeout": _CONNECT_S,
        "keepalives_idle": _NETWORK_S,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": _NETWORK_S * 1000,
    }
    given = url.query.get("options", "")
    options = f"{_SERVER_SETTINGS} {given if isinstance(given, str) else ' '.join(given)}".strip()
    return {"options": options, **{name: value for name, value in timeouts.items() if name not in url.query}}


class _ScheduleColumns(BaseModel):
    """Columns of a schedule's row, except its name and configuration."""

    evaluation_fingerprint: str
    is_paused: bool
    active_since: FiniteFloat
    lease_token: int
    lease_owner: str | None
    lease_expires_at: FiniteFloat | None


def read_schedules(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> tuple[list[Schedule], list[BrokenRow]]:
    """Read the schedules that match the conditions, sorted by name."""
    schedules, broken = list[Schedule](), list[BrokenRow]()
    are_paused = connection.execute(sa.select(PAUSES)).first() is not None
    for row in connection.execute(_unconverted(SCHEDULES).where(*where).order_by(SCHEDULES.c.name)):
        try:
            found = _schedule_of(row)
            schedules.append(replace(found, is_paused=found.is_paused or are_paused))
        except (ValueError, TypeError) as error:
            name = str(row.name)
            remedy = f"replace the schedule with `rlad schedule add {name} ... --replace`, or remove it with "
            remedy += f"`rlad schedule remove {name}`"
            key = f"name = {name!r}"
            broken.append(BrokenRow(schedule=name, table=SCHEDULES.name, key=key, problem=_line(error), remedy=remedy))
    return schedules, broken


def read_ticks(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> tuple[list[Tick], list[BrokenRow]]:
    """Read the ticks that match the conditions, oldest first."""
    ticks, broken = list[Tick](), list[BrokenRow]()
    for row in connection.execute(_unconverted(TICKS).where(*where).order_by(TICKS.c.id)):
        try:
            ticks.append(_tick_of(row))
        except (ValueError, TypeError) as error:
            key = f"id = {row.id}"
            remedy = f"restore it from a backup, or delete it: DELETE FROM {TICKS.name} WHERE {key}"
            broken.append(
                BrokenRow(schedule=str(row.schedule), table=TICKS.name, key=key, problem=_line(error), remedy=remedy)
            )
    return ticks, broken


def read_cron_history(connection: sa.Connection, name: str) -> CronHistory:
    """Read the latest scheduled times of a schedule's cron ticks, and its first waiting trigger."""
    is_refused = TICKS.c.status == "refused"
    opened = sa.func.max(sa.case((~is_refused, TICKS.c.scheduled_at)))
    refused = sa.func.max(sa.case((is_refused, TICKS.c.scheduled_at)))
    query = sa.select(opened, refused).where(TICKS.c.schedule == name, TICKS.c.kind == "cron")
    last_opened, last_refused = connection.execute(query).one()
    pending = (TRIGGERS.c.schedule == name, TRIGGERS.c.run_id.is_(None))
    triggered_at = connection.execute(sa.select(sa.func.min(TRIGGERS.c.requested_at)).where(*pending)).scalar()
    return CronHistory(last_opened=last_opened, last_refused=last_refused, triggered_at=triggered_at)


def tick_json(tick: Tick) -> str:
    """Return the JSON of a tick for the column `record`."""
    return _TICK_JSON.dump_json(tick).decode()


def _decode_invalid_text(connection: Any, _record: object) -> None:
    """Let a connection of SQLite read text that is not UTF-8. By default, one such value fails the whole query."""
    connection.text_factory = lambda text: text.decode(errors="backslashreplace")


def _unconverted(table: sa.Table) -> Any:
    return sa.select(*(sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in table.c))


def _schedule_of(row: Any) -> Schedule:
    columns = validated(_ScheduleColumns, dict(row._mapping), where="columns")
    config = validated(ScheduleConfig, json.loads(row.config), where="config")
    if config.name != row.name:
        raise ValueError(f"config: expected the name {row.name!r}; got {config.name!r}")
    parse_cron(config.cron, config.timezone)
    return Schedule(
        config=config,
        evaluation_fingerprint=columns.evaluation_fingerprint,
        is_paused=columns.is_paused,
        active_since=columns.active_since,
        lease_owner=columns.lease_owner,
        lease_expires_at=columns.lease_expires_at,
    )


def _tick_of(row: Any) -> Tick:
    tick = _TICK_JSON.validate_json(row.record)
    stored, recorded = (row.id, row.schedule, row.status), (tick.id, tick.schedule, tick.status)
    if stored != recorded:
        raise ValueError(f"record: expected id, schedule and status {stored}; got {recorded}")
    return tick


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
