"""Schedule store against a slow model: tickers that acquire, stop, die and wake up late run every due minute once."""

from __future__ import annotations

import shutil
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipelines.schedules.records import CronHistory, Lease, NewTick, Schedule, Tick
from pipelines.schedules.store import ScheduleStore
from pipelines.schedules.tick import due_tick
from rlad.config.schedule import ScheduleConfig
from rlad.errors import LeaseHeldError, LeaseLostError

from .memory_folder import memory_folder

START = 1_778_464_800.0  # 2026-05-11T02:00:00Z
MINUTE, LEASE_S, GRACE_S = 60.0, 100.0, 300.0
tickers = st.sampled_from([0, 1, 2])


class StoreMachine(RuleBasedStateMachine):
    """The model keeps who holds the lease until when, and every minute that has been opened or coalesced."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = memory_folder()
        self.now = START
        url = f"sqlite:///{self.folder / 'schedules.sqlite'}"
        self.stores = [ScheduleStore(url, clock=lambda: self.now) for _ in range(3)]
        self.stores[0].add(
            ScheduleConfig(
                name="minutely",
                run={"name": "r"},
                cron="* * * * *",
                model="kk",
                working_dir="/w",
                directory="/d",
                registry="/r",
                misfire_grace_s=GRACE_S,
            ),
            evaluation_fingerprint="f",
        )
        self.leases: dict[int, Lease] = {}  # what each ticker believes to hold
        self.holder: int | None = None
        self.expires_at = 0.0
        self.paused = False
        self.skipped_to = START  # times up to here are never due: the schedule was added or resumed then

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)

    def find_due(self, schedule: Schedule, history: CronHistory) -> NewTick | None:
        return due_tick(schedule, history, kind="cron", now=self.now)

    @property
    def history(self) -> list[Tick]:
        return self.stores[0].history("minutely")

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, 61.0, 150.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(ticker=tickers)
    def acquire(self, ticker: int) -> None:
        free = self.holder is None or self.expires_at < self.now
        try:
            lease, opened = self.stores[ticker].acquire_and_open("minutely", f"ticker {ticker}", LEASE_S, self.find_due)
        except LeaseHeldError:
            assert not free
            self.stores[ticker].record_refused("minutely", self.find_due, reason="held")
            return
        assert free
        self.leases[ticker], self.holder, self.expires_at = lease, ticker, self.now + LEASE_S
        unfinished = [tick for tick in self.history if tick.status == "running"]
        assert opened is None or opened.status == "missed" or unfinished == [opened]

    def is_valid(self, ticker: int) -> bool:
        return self.holder == ticker and ticker in self.leases

    @rule(ticker=tickers)
    def renew(self, ticker: int) -> None:
        if ticker in self.leases and self.writes(ticker, lambda lease: self.stores[ticker].renew(lease, LEASE_S)):
            self.expires_at = self.now + LEASE_S

    @rule(ticker=tickers, status=st.sampled_from(["finished", "failed", "skipped"]))
    def end_ticks(self, ticker: int, status: str) -> None:
        store = self.stores[ticker]
        for tick in [tick for tick in self.history if tick.status == "running"]:
            if ticker in self.leases:
                ended = replace(tick, status=status, ended_at=self.now)  # type: ignore[arg-type]
                self.writes(ticker, lambda lease, ended=ended: store.save(lease, ended))

    @rule(ticker=tickers)
    def open_due(self, ticker: int) -> None:
        if ticker in self.leases and not any(tick.status == "running" for tick in self.history):
            self.writes(ticker, lambda lease: self.stores[ticker].open_due(lease, self.find_due))

    def writes(self, ticker: int, write: object) -> bool:
        """Write with the lease that a ticker believes to hold. A stale one must be refused."""
        try:
            write(self.leases[ticker])  # type: ignore[operator]
        except LeaseLostError:
            assert not self.is_valid(ticker)
            del self.leases[ticker]
            return False
        assert self.is_valid(ticker)
        return True

    @rule(ticker=tickers)
    def release(self, ticker: int) -> None:
        lease = self.leases.pop(ticker, None)
        if lease is not None:
            self.stores[ticker].release(lease)
            if self.holder == ticker:
                self.holder = None

    @rule(ticker=tickers)
    def die(self, ticker: int) -> None:
        """Forget the lease without releasing it, as a killed ticker does."""
        if self.leases.pop(ticker, None) is not None and self.holder == ticker:
            self.holder = -1

    @rule()
    def pause_or_resume(self) -> None:
        if self.paused:
            self.stores[0].resume("minutely")
            self.skipped_to = self.now
        else:
            self.stores[0].pause("minutely")
        self.paused = not self.paused

    @invariant()
    def every_minute_is_accounted_for_once(self) -> None:
        opened = [tick for tick in self.history if tick.status != "refused"]
        times = [tick.scheduled_at for tick in opened]
        assert times == sorted(set(times))
        # Each tick stands for its own minute and the coalesced ones; together they are the minutes that passed.
        before = START
        for tick in opened:
            assert tick.scheduled_at % MINUTE == 0
            minutes = (tick.scheduled_at - before) / MINUTE
            assert tick.coalesced + 1 <= minutes, "a minute was counted twice"
            if self.skipped_to == START:
                assert tick.coalesced + 1 == minutes, "a minute was lost"
            before = tick.scheduled_at

    @invariant()
    def at_most_one_tick_runs(self) -> None:
        assert sum(tick.status == "running" for tick in self.history) <= 1


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
