"""Store of schedules, ticks and leases: a SQLite file, or any database that SQLAlchemy supports, such as PostgreSQL.

Only one ticker at a time works on a schedule: the holder of its lease. A lease has an expiry, which the holder extends,
and a token, which increases with every holder. A ticker that takes over an expired lease increases the token, and from
then on writes with an older token fail. Each write first updates the schedule's row *where the token is unchanged*, in
the same transaction; SQLite and PostgreSQL both lock the row or match none.

The tick that is due is opened in the transaction that acquires the lease, and a refused tick is recorded in one that
locks the same row. Of several tickers that fire together, exactly one therefore opens the tick, and the others see it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from platformdirs import user_data_path
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from pipelines.schedules.records import (
    BrokenRow,
    CronHistory,
    FindDue,
    Lease,
    NewTick,
    Schedule,
    SeenFile,
    Tick,
    TickKind,
    TickStatus,
)
from pipelines.schedules.rows import (
    ALL_OF_SCHEDULE,
    SCHEDULES,
    SEEN,
    TICKS,
    open_database,
    read_cron_history,
    read_schedules,
    read_ticks,
    tick_json,
)
from pipelines.schedules.state.changes import ChangeLog
from pipelines.schedules.state.pauses import GlobalPause
from pipelines.schedules.state.queue import RunQueue
from pipelines.schedules.state.triggers import TriggerQueue, consume_triggers
from rlad.config.schedule import ScheduleConfig
from rlad.credentials import redact, require_no_secrets
from rlad.errors import LeaseHeldError, LeaseLostError, ScheduleError

_URL_ENV = "RLAD_SCHEDULES"


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
        parsed: sa.URL | None = None
        try:
            parsed = sa.make_url(url)
            self._shown = redact(parsed.render_as_string(hide_password=True))
            self._engine = open_database(parsed)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            # A URL that cannot be parsed can hold a password that cannot be recognised: no part of it is shown.
            reason = "it is no URL" if parsed is None else redact(str(error))
            raise ScheduleError(
                f"{_URL_ENV} requires a database URL whose driver is installed, for example sqlite:///FILE: {reason}"
            ) from (None if parsed is None else error)
        except (DBAPIError, OSError) as error:
            reason = redact(str(error.orig if isinstance(error, DBAPIError) else error))
            raise ScheduleError(f"cannot open the schedule store {self._shown}: {reason}") from error

        self.queue = RunQueue(self._engine, clock)
        self.triggers = TriggerQueue(self._engine, clock)
        self.changes = ChangeLog(self._engine, clock)
        self.pauses = GlobalPause(self._engine, clock)

    def close(self) -> None:
        self._engine.dispose()

    # Schedules

    def add(self, config: ScheduleConfig, *, evaluation_fingerprint: str, replace: bool = False) -> None:
        """Store a schedule. With `replace`, an existing schedule gets the new configuration and keeps its history.

        Raises:
            ConfigError: The configuration holds a secret.
            ScheduleError: A schedule of that name exists.
        """
        require_no_secrets(config.model_dump(mode="json"), where=f"schedule {config.name}")
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
                    SCHEDULES.update().where(SCHEDULES.c.name == config.name).values(**values)
                ).rowcount
            ):
                return
            try:
                connection.execute(SCHEDULES.insert().values(name=config.name, **values, **fresh))
            except IntegrityError as error:
                raise ScheduleError(
                    f"schedule {config.name!r} already exists: change it with --replace, or remove it first"
                ) from error

    def schedule(self, name: str) -> Schedule:
        """Return the schedule with the given name.

        Raises:
            ScheduleError: No schedule has that name, or its row is invalid.
        """
        with self._engine.connect() as connection:
            return self._schedule(connection, name)

    def schedules(self) -> list[Schedule]:
        """Return all schedules whose rows are valid, sorted by name."""
        return self.read_schedules()[0]

    def read_schedules(self) -> tuple[list[Schedule], list[BrokenRow]]:
        """Return all schedules, sorted by name: the valid ones, and the rows that are invalid."""
        with self._engine.connect() as connection:
            return read_schedules(connection)

    def broken_rows(self) -> list[BrokenRow]:
        """Return the invalid rows of all schedules and ticks."""
        with self._engine.connect() as connection:
            return [*read_schedules(connection)[1], *read_ticks(connection)[1]]

    def pause(self, name: str) -> None:
        """Start no new runs. An active run continues."""
        self._change(name, is_paused=True)

    def resume(self, name: str) -> None:
        """Resume ticking from now on. Times that passed during the pause are skipped."""
        self._change(name, is_paused=False, active_since=self._clock())

    def remove(self, name: str) -> None:
        """Delete a schedule and its history. Run directories and the registry are kept.

        A schedule with an invalid row is deleted regardless of its lease: an active tick stops.

        Raises:
            LeaseHeldError: A tick of the schedule is active.
            ScheduleError: No schedule has that name.
        """
        is_named = SCHEDULES.c.name == name
        with self._engine.begin() as connection:
            free = sa.or_(SCHEDULES.c.lease_expires_at.is_(None), SCHEDULES.c.lease_expires_at < self._clock())
            if not connection.execute(SCHEDULES.delete().where(is_named, free)).rowcount:
                if not read_schedules(connection, is_named)[1]:
                    held = self._schedule(connection, name)
                    raise LeaseHeldError(
                        f"a tick of {name} is active ({held.lease_owner}): pause the schedule and wait for its end, "
                        "or stop that process"
                    )
                connection.execute(SCHEDULES.delete().where(is_named))
            for table in ALL_OF_SCHEDULE:
                connection.execute(table.delete().where(table.c.schedule == name))

    def _change(self, name: str, **values: object) -> None:
        with self._engine.begin() as connection:
            if not connection.execute(SCHEDULES.update().where(SCHEDULES.c.name == name).values(**values)).rowcount:
                self._schedule(connection, name)

    def _schedule(self, connection: sa.Connection, name: str) -> Schedule:
        schedules, broken = read_schedules(connection, SCHEDULES.c.name == name)
        if broken:
            raise ScheduleError(f"schedule {name} is broken: {broken[0].message}")
        if not schedules:
            known = connection.execute(sa.select(SCHEDULES.c.name).order_by(SCHEDULES.c.name)).scalars()
            raise ScheduleError(
                f"no schedule {name!r} in {self._shown}; existing schedules: {', '.join(map(str, known)) or 'none'}"
            )
        return schedules[0]

    # Leases

    def acquire(self, name: str, owner: str, lease_s: float) -> Lease:
        """Acquire a schedule's lease without opening a tick. `acquire_and_open` describes the errors."""
        return self.acquire_and_open(name, owner, lease_s, lambda _schedule, _history: None)[0]

    def acquire_and_open(self, name: str, owner: str, lease_s: float, find_due: FindDue) -> tuple[Lease, Tick | None]:
        """Acquire a schedule's lease if it is free or has expired, and open the tick that is due.

        Both happen in one transaction: no other ticker can see the lease as held and the time of the tick as not
        opened. While a tick is unfinished, none is opened: the caller continues it first, and then calls `open_due`.

        Raises:
            LeaseHeldError: Another ticker holds the lease.
            ScheduleError: The schedule does not exist, or the tick's run already exists.
        """
        now = self._clock()
        free = sa.or_(SCHEDULES.c.lease_expires_at.is_(None), SCHEDULES.c.lease_expires_at < now)
        taken = {"lease_token": SCHEDULES.c.lease_token + 1, "lease_owner": owner, "lease_expires_at": now + lease_s}
        with self._engine.begin() as connection:
            if connection.execute(SCHEDULES.update().where(SCHEDULES.c.name == name, free).values(taken)).rowcount:
                token = connection.execute(
                    sa.select(SCHEDULES.c.lease_token).where(SCHEDULES.c.name == name)
                ).scalar_one()
                lease = Lease(schedule=name, token=token, owner=owner)
                unfinished = sa.select(TICKS.c.id).where(TICKS.c.schedule == name, TICKS.c.status == "running")
                if connection.execute(unfinished.limit(1)).first() is not None:
                    return lease, None
                return lease, self._open_due(connection, name, find_due)
        held = self.schedule(name)
        raise LeaseHeldError(f"another tick of {name} is active ({held.lease_owner})")

    def renew(self, lease: Lease, lease_s: float) -> None:
        """Extend a lease to `lease_s` seconds from now.

        Raises:
            LeaseLostError: Another ticker holds the lease, or the schedule was removed.
        """
        with self._fenced(lease) as connection:
            connection.execute(
                SCHEDULES.update()
                .where(SCHEDULES.c.name == lease.schedule)
                .values(lease_expires_at=self._clock() + lease_s)
            )

    def release(self, lease: Lease) -> None:
        """Free a lease so that the next ticker need not wait for its expiry. A lost lease is left unchanged."""
        held = SCHEDULES.update().where(SCHEDULES.c.name == lease.schedule, SCHEDULES.c.lease_token == lease.token)
        with self._engine.begin() as connection:
            connection.execute(held.values(lease_owner=None, lease_expires_at=None))

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[sa.Connection]:
        """Open a transaction that fails if the lease is lost, and locks the schedule's row otherwise."""
        with self._engine.begin() as connection:
            held = SCHEDULES.update().where(SCHEDULES.c.name == lease.schedule, SCHEDULES.c.lease_token == lease.token)
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
        new = NewTick(kind=kind, scheduled_at=scheduled_at, run_id=run_id, status=status, coalesced=coalesced)
        with self._fenced(lease) as connection:
            return self._insert(connection, lease.schedule, new)

    def open_due(self, lease: Lease, find_due: FindDue) -> Tick | None:
        """Insert the tick that is due, or return None.

        Raises:
            LeaseLostError: Another ticker holds the lease.
        """
        with self._fenced(lease) as connection:
            return self._open_due(connection, lease.schedule, find_due)

    def record_refused(self, name: str, find_due: FindDue, *, reason: str) -> Tick | None:
        """Insert a record that the due tick was refused, because another one is active. This requires no lease.

        Returns:
            The refused tick. None if no tick is due any more, because the active ticker opened it, or if the time of a
            cron tick already has such a record.
        """
        with self._engine.begin() as connection:
            lock = SCHEDULES.update().where(SCHEDULES.c.name == name)
            if not connection.execute(lock.values(lease_token=SCHEDULES.c.lease_token)).rowcount:
                return None
            history = read_cron_history(connection, name)
            due = find_due(self._schedule(connection, name), history)
            if due is None or due.kind == "trigger":
                return None  # a trigger waits
            if due.kind == "cron" and due.scheduled_at <= (history.last_refused or 0.0):
                return None
            return self._insert(connection, name, replace(due, run_id=None, status="refused", coalesced=0), reason)

    def save(self, lease: Lease, tick: Tick, *, seen: Sequence[SeenFile] = ()) -> Tick:
        """Update a tick, and mark the prompt files `seen` as trained on.

        Raises:
            LeaseLostError: The lease is lost; the tick was not written.
        """
        with self._fenced(lease) as connection:
            values = {"status": tick.status, "record": tick_json(tick)}
            connection.execute(TICKS.update().where(TICKS.c.id == tick.id).values(**values))
            for file in seen:
                same = (SEEN.c.schedule == tick.schedule, SEEN.c.path == file.path, SEEN.c.sha256 == file.sha256)
                if connection.execute(SEEN.select().where(*same)).first() is None:
                    connection.execute(
                        SEEN.insert().values(
                            schedule=tick.schedule, path=file.path, sha256=file.sha256, run_id=tick.run_id
                        )
                    )
        return tick

    def history(self, name: str) -> list[Tick]:
        """Return all ticks of a schedule, oldest first. Invalid rows are left out; `broken_rows` returns them."""
        return self._ticks(TICKS.c.schedule == name)[0]

    def cron_history(self, name: str) -> CronHistory:
        """Return the latest scheduled times of a schedule's cron ticks."""
        with self._engine.connect() as connection:
            return read_cron_history(connection, name)

    def unfinished(self, name: str) -> list[Tick]:
        """Return the ticks whose run has not ended. Without a valid lease, their ticker has died.

        Raises:
            ScheduleError: The row of such a tick is invalid.
        """
        ticks, broken = self._ticks(TICKS.c.schedule == name, TICKS.c.status == "running")
        if broken:
            raise ScheduleError(f"an unfinished run of {name} cannot be continued: {broken[0].message}")
        return ticks

    def finished(self) -> list[Tick]:
        """Return the finished ticks of all schedules, except invalid rows. Their students are registered."""
        return self._ticks(TICKS.c.status == "finished")[0]

    def seen_files(self, name: str) -> set[SeenFile]:
        """Return the prompt files that finished runs of a schedule have trained on."""
        with self._engine.connect() as connection:
            rows = connection.execute(SEEN.select().where(SEEN.c.schedule == name)).all()
        return {SeenFile(path=row.path, sha256=row.sha256) for row in rows}

    def _open_due(self, connection: sa.Connection, name: str, find_due: FindDue) -> Tick | None:
        """Insert the tick that is due. The caller's transaction has locked the schedule's row."""
        due = find_due(self._schedule(connection, name), read_cron_history(connection, name))
        if due is not None and due.kind == "trigger":
            consume_triggers(connection, name, due.run_id)
        return None if due is None else self._insert(connection, name, due)

    def _insert(self, connection: sa.Connection, name: str, new: NewTick, reason: str | None = None) -> Tick:
        """Insert a tick. A tick whose status is not `running` has ended at once."""
        now = self._clock()
        tick = Tick(
            schedule=name,
            kind=new.kind,
            status=new.status,
            scheduled_at=new.scheduled_at,
            run_id=new.run_id,
            coalesced=new.coalesced,
            started_at=now,
            ended_at=None if new.status == "running" else now,
            reason=reason,
        )
        values = {
            "schedule": name,
            "run_id": new.run_id,
            "kind": new.kind,
            "scheduled_at": new.scheduled_at,
            "status": new.status,
            "record": "{}",
        }
        try:
            key = connection.execute(TICKS.insert().values(**values)).inserted_primary_key
        except IntegrityError as error:
            raise ScheduleError(f"run {tick.run_id} already exists") from error
        assert key is not None
        inserted = tick.with_id(key[0])
        connection.execute(TICKS.update().where(TICKS.c.id == inserted.id).values(record=tick_json(inserted)))
        return inserted

    def _ticks(self, *where: sa.ColumnElement[bool]) -> tuple[list[Tick], list[BrokenRow]]:
        with self._engine.connect() as connection:
            return read_ticks(connection, *where)
