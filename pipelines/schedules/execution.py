"""Execution of one tick under a lease: its record in the store, and the `rlad` commands that it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from actors.health.node_watch import NodeWatch, ProcessId, Sighting
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.heartbeat import read_heartbeat
from pipelines.run.status import STOPPED_EXIT_CODE
from pipelines.schedules.launcher import ChildProcess, RunExit, RunLauncher, RunningRun, RunRequest
from pipelines.schedules.lease import HeldLease
from pipelines.schedules.records import Schedule, ScheduleDirectory, Tick, TickJob, TickStatus
from pipelines.schedules.store import ScheduleStore
from rlad.config import FailureConfig
from rlad.config.schedule import ScheduleConfig
from rlad.credentials import redact
from rlad.errors import (
    CorruptFileError,
    DeadlineError,
    LeaseLostError,
    RunDirectoryError,
    RunFailedError,
    ScheduleError,
    StopRequestedError,
    TickInterruptedError,
)
from rlad.monitoring.cost import RunCost

logger = logging.getLogger(__name__)

# Interval at which a running command is checked for its end, its deadline and the lease.
_WATCH_S = 0.5
# Interval at which a tick asks for a slot of its queue.
_SLOT_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticker:
    """Environment of a tick.

    Attributes:
        store: Schedule store.
        launcher: Starts runs as processes.
        job_launcher: Returns the launcher of a schedule whose runs are jobs; None if this ticker submits no jobs.
        stop: Set to end cleanly: the active run is stopped, and the next tick continues it.
        clock: Function that returns seconds since the epoch.
    """

    store: ScheduleStore
    launcher: RunLauncher = field(default_factory=ChildProcess)
    job_launcher: Callable[[ScheduleConfig], RunLauncher] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.time


class _Hang:
    """Measures for how long a process has been stopped.

    Attributes:
        limit_s: Time after which it counts as hung, seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: float | None = None

    def is_over(self, is_stopped: bool) -> bool:
        """Record a look at the process. Return whether it was stopped at all looks for as long as the limit."""
        now = time.monotonic()
        self._since = (self._since or now) if is_stopped else None
        return self._since is not None and now - self._since >= self.limit_s


class TickExecution:
    """One tick under a lease. `tick` is its present record; `save` and `end` update it in the store.

    Attributes:
        ticker: Environment of the tick.
        schedule: Schedule that ticks.
        held: Lease of the schedule.
        tick: Present record of the tick.
    """

    def __init__(self, ticker: Ticker, schedule: Schedule, held: HeldLease, tick: Tick) -> None:
        self.ticker, self.schedule, self.held, self.tick = ticker, schedule, held, tick

    @property
    def config(self) -> ScheduleConfig:
        return self.schedule.config

    @property
    def directory(self) -> ScheduleDirectory:
        return self.schedule.directory

    @property
    def run_id(self) -> str:
        assert self.tick.run_id is not None
        return self.tick.run_id

    def save(self, **changes: Any) -> None:
        """Change fields of the tick and write it.

        Raises:
            LeaseLostError: Another ticker holds the lease.
        """
        redacted: dict[str, Any] = {
            name: redact(value) if isinstance(value, str) else value for name, value in changes.items()
        }
        self.tick = self.ticker.store.save(self.held.lease, replace(self.tick, **redacted))

    def end(self, status: TickStatus, reason: str | None) -> None:
        """Write the tick's end with the cost of its run. A finished tick marks its new prompt files as trained on."""
        seen = self.tick.plan.new_files if status == "finished" and self.tick.plan is not None else ()
        ended = replace(
            self.tick,
            status=status,
            reason=reason and redact(reason),
            ended_at=self.ticker.clock(),
            cost=self._recorded_cost(),
        )
        self.tick = self.ticker.store.save(self.held.lease, ended, seen=seen)
        self.ticker.store.queue.free(self.schedule.name)
        logger.info(
            "tick_ended schedule=%s run=%s event=%s reason=%s", ended.schedule, ended.run_id, ended.event, ended.reason
        )

    def _recorded_cost(self) -> RunCost | None:
        try:
            found = read_cost(RunDirectory(self.directory.run(self.run_id)))
        except (CorruptFileError, OSError) as error:
            logger.warning("cost=unknown run=%s reason=%s", self.run_id, error)
            return None
        return None if found is None else found.total

    def history(self) -> list[Tick]:
        """Return the ticks of the schedule, oldest first."""
        return self.ticker.store.history(self.schedule.name)

    def wait_for_slot(self) -> None:
        """Wait for a slot of the schedule's queue. The wait does not count towards the deadline.

        Raises:
            LeaseLostError: Another ticker holds the lease.
            TickInterruptedError: `ticker.stop` was set.
        """
        began, queue = self.ticker.clock(), self.ticker.store.queue
        if queue.take(self.held.lease, self.config, requested_at=self.tick.scheduled_at):
            return
        logger.info("queued schedule=%s run=%s queue=%s", self.schedule.name, self.run_id, self.config.queue_name)
        try:
            while not queue.take(self.held.lease, self.config, requested_at=self.tick.scheduled_at):
                if self.held.lost.is_set():
                    raise LeaseLostError(f"lost the lease of {self.schedule.name} while it waited for a slot")
                if self.ticker.stop.wait(_SLOT_POLL_S):
                    raise TickInterruptedError(f"interrupted while {self.run_id} waited in {self.config.queue_name}")
        finally:
            if not self.held.lost.is_set():
                self.save(queued_s=self.tick.queued_s + self.ticker.clock() - began)

    def execute(self, arguments: list[str], *, name: str, output: Path) -> None:
        """Run an `rlad` command to its end. The job of an earlier ticker that executes it is adopted.

        Args:
            arguments: Arguments of the command `rlad`.
            name: Name of the command, unique within the schedule's directory.
            output: Directory that the command writes.

        Raises:
            StopRequestedError: `rlad stop` stopped the run.
            RunFailedError: The command failed; the message has its reason.
            DeadlineError: The schedule's deadline has passed.
            LeaseLostError: Another ticker holds the lease.
            TickInterruptedError: `ticker.stop` was set.
        """
        request = RunRequest(
            name=name,
            output=output,
            arguments=tuple(arguments),
            working_dir=Path(self.config.working_dir),
            log=self.directory.log(self.run_id),
        )
        job = self.tick.job
        if job is not None and job.command == name:
            logger.info("job_adopted schedule=%s run=%s job=%s", self.schedule.name, self.run_id, job.id)
            running = self.launcher.adopt(request, job.id)
        else:
            running = self.launcher.start(request)
            if running.job is not None:
                self.save(job=TickJob(id=running.job, command=name, submitted_at=self.ticker.clock()))
        ended = self._watch(running)
        if ended.status != 0 and running.job is not None:
            self.save(job=None)  # a further attempt submits another job
        if ended.status == STOPPED_EXIT_CODE:
            raise StopRequestedError(ended.reason or "stopped on request")
        if ended.status != 0:
            raise RunFailedError(f"{ended.reason} (log: {request.log})")

    @property
    def launcher(self) -> RunLauncher:
        """Launcher of the schedule's runs.

        Raises:
            ScheduleError: The runs are jobs, and this ticker submits none.
        """
        if self.config.launcher.kind == "process":
            return self.ticker.launcher
        if self.ticker.job_launcher is None:
            raise ScheduleError(f"{self.schedule.name} has launcher.kind {self.config.launcher.kind}: got no launcher")
        return self.ticker.job_launcher(self.config)

    @property
    def address(self) -> str | None:
        """Address of the Ray cluster that the schedule's commands join; None for a cluster of their own."""
        return self.config.address if self.config.launcher.kind == "process" else "auto"

    def is_run_active(self) -> bool:
        """Return True if another process holds the lock of the run's directory."""
        run = RunDirectory(self.directory.run(self.run_id))
        if not run.config.is_file():
            return False
        try:
            with run.hold(run.read_config(), resume=True):
                return False
        except RunDirectoryError:
            return True
        except (OSError, ValueError, yaml.YAMLError):
            return False  # an invalid directory is reported by the run itself

    def wait_for_run(self) -> bool:
        """Wait while another process works in the run's directory, and return whether one did.

        A ticker that was frozen (SIGSTOP, a suspended machine) lost its lease, but its run continues. The wait counts
        towards the schedule's deadline.

        Raises:
            DeadlineError: The schedule's deadline has passed.
            LeaseLostError: Another ticker holds the lease.
            TickInterruptedError: `ticker.stop` was set.
        """
        if not self.is_run_active():
            return False
        logger.info("waiting_for_run schedule=%s run=%s", self.schedule.name, self.run_id)
        hang = self._hang()
        with self._working_time() as require_continuing:
            while self.is_run_active():
                require_continuing(", because another process still works in its directory")
                driver = read_heartbeat(RunDirectory(self.directory.run(self.run_id)))
                if driver is not None and driver.is_here and hang.is_over(_is_stopped(driver.process)):
                    logger.warning("run_hung run=%s pid=%d", self.run_id, driver.process.pid)
                    NodeWatch().kill(driver.process)
                self.ticker.stop.wait(_WATCH_S)
        return True

    def _watch(self, running: RunningRun) -> RunExit:
        """Wait for a command, and stop it when it must not continue or its process is stopped.

        A job continues when its ticker ends or loses the lease: the next ticker adopts it.
        """
        hang = self._hang()
        with self._working_time(self.tick.job if running.job is not None else None) as require_continuing:
            try:
                while (ended := running.wait(_WATCH_S)) is None:
                    require_continuing()
                    if hang.is_over(running.is_stopped()):
                        running.stop(0.0)
                        raise RunFailedError(f"its process was stopped for {hang.limit_s:g} s, and killed")
            except (TickInterruptedError, LeaseLostError):
                if running.job is None:
                    running.stop(self.config.stop_grace_s)
                raise
            except BaseException:
                running.stop(self.config.stop_grace_s)
                raise
        return ended

    def _hang(self) -> _Hang:
        failures = FailureConfig.model_validate(self.config.run.get("failures", {}))
        return _Hang(failures.heartbeat_s * (failures.missed_heartbeats - 1))

    @contextmanager
    def _working_time(self, job: TickJob | None = None) -> Iterator[Callable[..., None]]:
        """Add the duration of the block to the tick's `spent_s`. Yields a check that raises if the tick must stop.

        Args:
            job: Job whose time counts from its submission, also under earlier tickers; None for the block's time.
        """
        spent_s, began = self.tick.spent_s, time.monotonic()

        def elapsed_s() -> float:
            return time.monotonic() - began if job is None else max(0.0, self.ticker.clock() - job.submitted_at)

        def require_continuing(cause: str = "") -> None:
            if self.held.lost.is_set():
                raise LeaseLostError(f"lost the lease of {self.schedule.name}: another ticker continues {self.run_id}")
            if self.ticker.stop.is_set():
                raise TickInterruptedError(
                    f"interrupted: the next tick of {self.schedule.name} takes over {self.run_id} and "
                    + ("continues it from its last checkpoint" if job is None else f"adopts its job {job.id}")
                )
            if spent_s + elapsed_s() > self.config.deadline_s:
                raise DeadlineError(f"not finished within deadline_s {self.config.deadline_s:g}{cause}")

        continues = False
        try:
            yield require_continuing
        except TickInterruptedError:
            continues = job is not None  # its time is counted at its end
            raise
        finally:
            if not self.held.lost.is_set() and not continues:
                self.save(spent_s=spent_s + elapsed_s())


def _is_stopped(process: ProcessId) -> bool:
    return NodeWatch().look([(process, False)]) == [Sighting.STOPPED]
