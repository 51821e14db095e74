"""Store of schedules, ticks and leases: a SQLite file, or any database that SQLAlchemy supports, such as PostgreSQL.

Only one ticker at a time works on a schedule: the holder of its lease. A lease has an expiry, which the holder extends,
and a token, which increases with every holder. A ticker that takes over an expired lease increases the token, and from
then on writes with an older token fail. Each write first updates the schedule's row *where the token is unchanged*, in
the same transaction; SQLite and PostgreSQL both lock the row or match none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from platformdirs import user_data_path
from pydantic import TypeAdapter
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from pipelines.schedules.records import Lease, Schedule, SeenFile, Tick, TickKind, TickStatus
from rlad.config.load import validated
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseHeldError, LeaseLostError, ScheduleError

_URL_ENV = "RLAD_SCHEDULES"
# SQLite allows one writer at a time; other writers wait up to this long.
_BUSY_S = 30.0

_TABLES = sa.MetaData()
_SCHEDULES = sa.Table(
    "rlad_schedules",
    _TABLES,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("evaluation_fingerprint", sa.String(64), nullable=False),
    sa.Column("is_paused", sa.Boolean, nullable=False),
    sa.Column("active_since", sa.Float(53), nullable=False),
    sa.Column("lease_token", sa.BigInteger, nullable=False),
    sa.Column("lease_owner", sa.String(200)),
    sa.Column("lease_expires_at", sa.Float(53)),
)
_TICKS = sa.Table(
    "rlad_ticks",
    _TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("schedule", sa.String(40), nullable=False, index=True),
    sa.Column("run_id", sa.String(80), unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("scheduled_at", sa.Float(53), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)
_SEEN = sa.Table(
    "rlad_seen_files",
    _TABLES,
    sa.Column("schedule", sa.String(40), primary_key=True),
    sa.Column("path", sa.String(1024), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(80), nullable=False),
)
_TICK_JSON = TypeAdapter(Tick)


def default_url() -> str:
    """Return the store URL: the value of `RLAD_SCHEDULES`, or a SQLite file in the user's data directory."""
    return os.environ.get(_URL_ENV) or f"sqlite:///{user_data_path('rlad') / 'schedules.sqlite'}"


class ScheduleStore:
    """Database of schedules and their history.

    Args:
        url: SQLAlchemy URL, for example `sqlite:///schedules.sqlite` or `postgresql+psycopg://user@host/rlad`.
        clock: Function that returns seconds since the epoch. The clocks of all tickers must agree within a fraction of
            a lease.

    Raises:
        ScheduleError: The URL is invalid, or the database does not answer.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        try:
            parsed = sa.make_url(url)
            self._shown = parsed.render_as_string(hide_password=True)
            is_sqlite = parsed.get_backend_name() == "sqlite"
            if is_sqlite and parsed.database:
                _make_folder(parsed.database)
            self._engine = sa.create_engine(
                parsed, connect_args={"timeout": _BUSY_S} if is_sqlite else {}, pool_pre_ping=not is_sqlite
            )
            try:
                _TABLES.create_all(self._engine)
            except DBAPIError:
                _TABLES.create_all(self._engine)  # another process created a table at the same time
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ScheduleError(
                f"{_URL_ENV} requires a database URL whose driver is installed, for example sqlite:///FILE: {error}"
            ) from error
        except (DBAPIError, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise ScheduleError(f"cannot open the schedule store {self._shown}: {reason}") from error

    def close(self) -> None:
        self._engine.dispose()

    # Schedules

    def add(self, config: ScheduleConfig, *, evaluation_fingerprint: str, replace: bool = False) -> None:
        """Store a schedule. With `replace`, an existing schedule gets the new configuration and keeps its history.

        Raises:
            ScheduleError: A schedule of that name exists.
        """
        values: dict[str, Any] = {"config": config.model_dump_json(), "evaluation_fingerprint": evaluation_fingerprint}
        fresh = {
            "is_paused": False,
            "active_since": self._clock(),
            "lease_token": 0,
            "lease_owner": None,
            "lease_expires_at": None,
        }
        with self._engine.begin() as connection:
            if (
                replace
                and connection.execute(
                    _SCHEDULES.update().where(_SCHEDULES.c.name == config.name).values(**values)
                ).rowcount
            ):
                return
            try:
                connection.execute(_SCHEDULES.insert().values(name=config.name, **values, **fresh))
            except IntegrityError as error:
                raise ScheduleError(
                    f"schedule {config.name!r} already exists: change it with --replace, or remove it first"
                ) from error

    def schedule(self, name: str) -> Schedule:
        """Return the schedule with the given name.

        Raises:
            ScheduleError: No schedule has that name.
        """
        for schedule in self.schedules():
            if schedule.name == name:
                return schedule
        known = ", ".join(schedule.name for schedule in self.schedules())
        raise ScheduleError(f"no schedule {name!r} in {self._shown}; existing schedules: {known or 'none'}")

    def schedules(self) -> list[Schedule]:
        """Return all schedules, sorted by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(_SCHEDULES.select().order_by(_SCHEDULES.c.name)).all()
        return [
            Schedule(
                config=validated(ScheduleConfig, json.loads(row.config), where=f"schedule {row.name}"),
                evaluation_fingerprint=row.evaluation_fingerprint,
                is_paused=row.is_paused,
                active_since=row.active_since,
                lease_owner=row.lease_owner,
                lease_expires_at=row.lease_expires_at,
            )
            for row in rows
        ]

    def pause(self, name: str) -> None:
        """Start no new runs. An active run continues."""
        self._change(name, is_paused=True)

    def resume(self, name: str) -> None:
        """Resume ticking from now on. Times that passed during the pause are skipped."""
        self._change(name, is_paused=False, active_since=self._clock())

    def remove(self, name: str) -> None:
        """Delete a schedule and its history. Run directories and the registry are kept.

        Raises:
            LeaseHeldError: A tick of the schedule is active.
        """
        schedule, now = self.schedule(name), self._clock()
        with self._engine.begin() as connection:
            free = sa.or_(_SCHEDULES.c.lease_expires_at.is_(None), _SCHEDULES.c.lease_expires_at < now)
            if not connection.execute(_SCHEDULES.delete().where(_SCHEDULES.c.name == name, free)).rowcount:
                raise LeaseHeldError(
                    f"a tick of {name} is active ({schedule.lease_owner}): pause the schedule and wait for its end, "
                    "or stop that process"
                )
            connection.execute(_TICKS.delete().where(_TICKS.c.schedule == name))
            connection.execute(_SEEN.delete().where(_SEEN.c.schedule == name))

    def _change(self, name: str, **values: object) -> None:
        self.schedule(name)
        with self._engine.begin() as connection:
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.name == name).values(**values))

    # Leases

    def acquire(self, name: str, owner: str, lease_s: float) -> Lease:
        """Acquire a schedule's lease if it is free or has expired.

        Raises:
            LeaseHeldError: Another ticker holds the lease.
            ScheduleError: The schedule does not exist.
        """
        now = self._clock()
        with self._engine.begin() as connection:
            row = connection.execute(_SCHEDULES.select().where(_SCHEDULES.c.name == name)).one_or_none()
            if row is not None and (row.lease_expires_at is None or row.lease_expires_at < now):
                taken = _SCHEDULES.update().where(
                    _SCHEDULES.c.name == name, _SCHEDULES.c.lease_token == row.lease_token
                )
                token = row.lease_token + 1
                values = {"lease_token": token, "lease_owner": owner, "lease_expires_at": now + lease_s}
                if connection.execute(taken.values(**values)).rowcount:
                    return Lease(schedule=name, token=token, owner=owner)
        held = self.schedule(name)
        raise LeaseHeldError(f"another tick of {name} is active ({held.lease_owner})")

    def renew(self, lease: Lease, lease_s: float) -> None:
        """Extend a lease to `lease_s` seconds from now.

        Raises:
            LeaseLostError: Another ticker holds the lease, or the schedule was removed.
        """
        with self._fenced(lease) as connection:
            connection.execute(
                _SCHEDULES.update()
                .where(_SCHEDULES.c.name == lease.schedule)
                .values(lease_expires_at=self._clock() + lease_s)
            )

    def release(self, lease: Lease) -> None:
        """Free a lease so that the next ticker need not wait for its expiry. A lost lease is left unchanged."""
        held = _SCHEDULES.update().where(_SCHEDULES.c.name == lease.schedule, _SCHEDULES.c.lease_token == lease.token)
        with self._engine.begin() as connection:
            connection.execute(held.values(lease_owner=None, lease_expires_at=None))

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[sa.Connection]:
        """Open a transaction that fails if the lease is lost, and locks the schedule's row otherwise."""
        with self._engine.begin() as connection:
            held = _SCHEDULES.update().where(
                _SCHEDULES.c.name == lease.schedule, _SCHEDULES.c.lease_token == lease.token
            )
            if not connection.execute(held.values(lease_token=lease.token)).rowcount:
                raise LeaseLostError(
                    f"{lease.owner} has lost the lease of {lease.schedule} (token {lease.token}) to another ticker"
                )
            yield connection

    # Ticks

    def open_tick(
        self,
        lease: Lease,
        *,
        kind: TickKind,
        scheduled_at: float,
        run_id: str | None,
        status: TickStatus,
        coalesced: int = 0,
    ) -> Tick:
        """Insert a tick. A tick whose status is not `running` has ended at once."""
        now = self._clock()
        ended_at = None if status == "running" else now
        with self._fenced(lease) as connection:
            return self._insert(
                connection,
                Tick(
                    schedule=lease.schedule,
                    kind=kind,
                    status=status,
                    scheduled_at=scheduled_at,
                    run_id=run_id,
                    coalesced=coalesced,
                    started_at=now,
                    ended_at=ended_at,
                ),
            )

    def record_refused(self, name: str, *, kind: TickKind, scheduled_at: float, reason: str) -> Tick:
        """Insert a tick that was refused because another one is active. This is the only write without a lease."""
        now = self._clock()
        tick = Tick(
            schedule=name,
            kind=kind,
            status="refused",
            scheduled_at=scheduled_at,
            run_id=None,
            coalesced=0,
            started_at=now,
            ended_at=now,
            reason=reason,
        )
        with self._engine.begin() as connection:
            return self._insert(connection, tick)

    def save(self, lease: Lease, tick: Tick, *, seen: Sequence[SeenFile] = ()) -> Tick:
        """Update a tick, and mark the prompt files `seen` as trained on.

        Raises:
            LeaseLostError: The lease is lost; the tick was not written.
        """
        with self._fenced(lease) as connection:
            values = {"status": tick.status, "record": _TICK_JSON.dump_json(tick).decode()}
            connection.execute(_TICKS.update().where(_TICKS.c.id == tick.id).values(**values))
            for file in seen:
                same = (_SEEN.c.schedule == tick.schedule, _SEEN.c.path == file.path, _SEEN.c.sha256 == file.sha256)
                if connection.execute(_SEEN.select().where(*same)).first() is None:
                    connection.execute(
                        _SEEN.insert().values(
                            schedule=tick.schedule, path=file.path, sha256=file.sha256, run_id=tick.run_id
                        )
                    )
        return tick

    def history(self, name: str) -> list[Tick]:
        """Return all ticks of a schedule, oldest first."""
        return self._ticks(_TICKS.c.schedule == name)

    def last_time(self, name: str) -> float | None:
        """Return the latest scheduled time of a cron tick, or None before the first one."""
        with self._engine.connect() as connection:
            query = sa.select(sa.func.max(_TICKS.c.scheduled_at)).where(
                _TICKS.c.schedule == name, _TICKS.c.kind == "cron"
            )
            found: float | None = connection.execute(query).scalar()
            return found

    def unfinished(self, name: str) -> list[Tick]:
        """Return the ticks whose run has not ended. Without a valid lease, their ticker has died."""
        return self._ticks(_TICKS.c.schedule == name, _TICKS.c.status == "running")

    def finished(self) -> list[Tick]:
        """Return the finished ticks of all schedules. Their students are registered."""
        return self._ticks(_TICKS.c.status == "finished")

    def seen_files(self, name: str) -> set[SeenFile]:
        """Return the prompt files that finished runs of a schedule have trained on."""
        with self._engine.connect() as connection:
            rows = connection.execute(_SEEN.select().where(_SEEN.c.schedule == name)).all()
        return {SeenFile(path=row.path, sha256=row.sha256) for row in rows}

    def _insert(self, connection: sa.Connection, tick: Tick) -> Tick:
        values = {
            "schedule": tick.schedule,
            "run_id": tick.run_id,
            "kind": tick.kind,
            "scheduled_at": tick.scheduled_at,
            "status": tick.status,
            "record": "{}",
        }
        try:
            key = connection.execute(_TICKS.insert().values(**values)).inserted_primary_key
        except IntegrityError as error:
            raise ScheduleError(f"run {tick.run_id} already exists") from error
        assert key is not None
        inserted = tick.with_id(key[0])
        connection.execute(
            _TICKS.update().where(_TICKS.c.id == inserted.id).values(record=_TICK_JSON.dump_json(inserted).decode())
        )
        return inserted

    def _ticks(self, *where: sa.ColumnElement[bool]) -> list[Tick]:
        with self._engine.connect() as connection:
            rows: Iterable[Any] = connection.execute(_TICKS.select().where(*where).order_by(_TICKS.c.id)).all()
        return [_TICK_JSON.validate_json(row.record) for row in rows]


def _make_folder(database: str) -> None:
    Path(database).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
