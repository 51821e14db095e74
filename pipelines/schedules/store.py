"""Where schedules, their ticks and their leases are kept: SQLite in a file, or any database that SQLAlchemy reaches, PostgreSQL for one.

Only one ticker at a time may work on a schedule. It holds the schedule's lease: a row with an expiry that it keeps moving, and a token that grows with
every holder. Whoever comes after an expired lease raises the token, and from then on nothing that carries the older one is written: each write first
touches the schedule's row *where the token is still mine*, in the same transaction, which both databases answer with a lock or with no row.
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
# SQLite has one writer at a time; the others wait so long for it.
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
    """The store that `RLAD_SCHEDULES` names, else a file of this user's."""
    return os.environ.get(_URL_ENV) or f"sqlite:///{user_data_path('rlad') / 'schedules.sqlite'}"


class ScheduleStore:
    """Schedules and their history.

    Args:
        url: SQLAlchemy's, for example `sqlite:///schedules.sqlite` or `postgresql+psycopg://user@host/rlad`.
        clock: seconds since the epoch. Tickers on several machines must agree on it within a fraction of a lease.

    Raises:
        ScheduleError: nothing answers there, or the URL is none.
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
                _TABLES.create_all(self._engine)  # somebody else has made one of them in between
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ScheduleError(
                f"{_URL_ENV} has to be a database URL whose driver is installed, as sqlite:///FILE: {error}"
            ) from error
        except (DBAPIError, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise ScheduleError(f"the schedules at {self._shown} cannot be opened: {reason}") from error

    def close(self) -> None:
        self._engine.dispose()

    # Schedules

    def add(self, config: ScheduleConfig, *, evaluation_fingerprint: str, replace: bool = False) -> None:
        """Store a schedule, or with `replace` put another configuration in its place; history and lease stay.

        Raises:
            ScheduleError: there is one of that name.
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
                    f"there is a schedule {config.name!r}: change it with --replace, or remove it first"
                ) from error

    def schedule(self, name: str) -> Schedule:
        """
        Raises:
            ScheduleError: there is none; says which there are.
        """
        for schedule in self.schedules():
            if schedule.name == name:
                return schedule
        raise ScheduleError(
            f"no schedule {name!r} in {self._shown}; there are {', '.join(each.name for each in self.schedules()) or 'none'}"
        )

    def schedules(self) -> list[Schedule]:
        """All, by name."""
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
        """No new run starts; one under way goes on."""
        self._change(name, is_paused=True)

    def resume(self, name: str) -> None:
        """Tick again, from now on: what was due in between is not made up for."""
        self._change(name, is_paused=False, active_since=self._clock())

    def remove(self, name: str) -> None:
        """Forget a schedule and its history; runs and registry stay.

        Raises:
            LeaseHeldError: a tick of it is under way.
        """
        schedule, now = self.schedule(name), self._clock()
        with self._engine.begin() as connection:
            free = sa.or_(_SCHEDULES.c.lease_expires_at.is_(None), _SCHEDULES.c.lease_expires_at < now)
            if not connection.execute(_SCHEDULES.delete().where(_SCHEDULES.c.name == name, free)).rowcount:
                raise LeaseHeldError(
                    f"a tick of {name} is under way ({schedule.lease_owner}): pause the schedule and wait, or end that process"
                )
            connection.execute(_TICKS.delete().where(_TICKS.c.schedule == name))
            connection.execute(_SEEN.delete().where(_SEEN.c.schedule == name))

    def _change(self, name: str, **values: object) -> None:
        self.schedule(name)
        with self._engine.begin() as connection:
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.name == name).values(**values))

    # Leases

    def acquire(self, name: str, owner: str, lease_s: float) -> Lease:
        """Take a schedule's lease, if nobody holds it.

        Raises:
            LeaseHeldError: somebody does, and until when.
            ScheduleError: no such schedule.
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
        raise LeaseHeldError(f"another tick of {name} is under way ({held.lease_owner})")

    def renew(self, lease: Lease, lease_s: float) -> None:
        """
        Raises:
            LeaseLostError: the lease has another holder, or the schedule is gone.
        """
        with self._fenced(lease) as connection:
            connection.execute(
                _SCHEDULES.update()
                .where(_SCHEDULES.c.name == lease.schedule)
                .values(lease_expires_at=self._clock() + lease_s)
            )

    def release(self, lease: Lease) -> None:
        """Let the next ticker come at once. Nothing happens where the lease is lost."""
        mine = _SCHEDULES.update().where(_SCHEDULES.c.name == lease.schedule, _SCHEDULES.c.lease_token == lease.token)
        with self._engine.begin() as connection:
            connection.execute(mine.values(lease_owner=None, lease_expires_at=None))

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            mine = _SCHEDULES.update().where(
                _SCHEDULES.c.name == lease.schedule, _SCHEDULES.c.lease_token == lease.token
            )
            if not connection.execute(mine.values(lease_token=lease.token)).rowcount:
                raise LeaseLostError(
                    f"{lease.owner} has lost the lease of {lease.schedule} (token {lease.token}): another ticker went on without it"
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
        """Begin a tick; one that does not run has ended with that."""
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
        """Record a tick that found another one under way. The only write without a lease."""
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
        """Write a tick as it stands now, and the files that need not be trained on again.

        Raises:
            LeaseLostError: nothing was written.
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
        """All ticks of a schedule, the oldest first."""
        return self._ticks(_TICKS.c.schedule == name)

    def last_time(self, name: str) -> float | None:
        """The latest time that a tick of the clock stood for; None before the first."""
        with self._engine.connect() as connection:
            query = sa.select(sa.func.max(_TICKS.c.scheduled_at)).where(
                _TICKS.c.schedule == name, _TICKS.c.kind == "cron"
            )
            found: float | None = connection.execute(query).scalar()
            return found

    def unfinished(self, name: str) -> list[Tick]:
        """Ticks whose run has not come to its end; without a live lease, their ticker is gone."""
        return self._ticks(_TICKS.c.schedule == name, _TICKS.c.status == "running")

    def finished(self) -> list[Tick]:
        """Of all schedules, those whose student is in a registry."""
        return self._ticks(_TICKS.c.status == "finished")

    def seen_files(self, name: str) -> set[SeenFile]:
        with self._engine.connect() as connection:
            rows = connection.execute(_SEEN.select().where(_SEEN.c.schedule == name)).all()
        return {SeenFile(path=row.path, sha256=row.sha256) for row in rows}

    def _insert(self, connection: sa.Connection, tick: Tick) -> Tick:
        told = {"kind": tick.kind, "scheduled_at": tick.scheduled_at, "status": tick.status}
        values = {"schedule": tick.schedule, "run_id": tick.run_id, **told, "record": "{}"}
        try:
            key = connection.execute(_TICKS.insert().values(**values)).inserted_primary_key
        except IntegrityError as error:
            raise ScheduleError(f"there is a run {tick.run_id} already") from error
        assert key is not None
        made = tick.with_id(key[0])
        connection.execute(
            _TICKS.update().where(_TICKS.c.id == made.id).values(record=_TICK_JSON.dump_json(made).decode())
        )
        return made

    def _ticks(self, *where: sa.ColumnElement[bool]) -> list[Tick]:
        with self._engine.connect() as connection:
            rows: Iterable[Any] = connection.execute(_TICKS.select().where(*where).order_by(_TICKS.c.id)).all()
        return [_TICK_JSON.validate_json(row.record) for row in rows]


def _make_folder(database: str) -> None:
    Path(database).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
