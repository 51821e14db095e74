"""One tick of a schedule, from top to bottom.

    take the lease -> resume what is unfinished, or open what is due -> choose the student -> refresh the prompts -> run -> register -> decide -> tell

Whoever ticks (`rlad schedule serve`, a CronJob, a person) calls `tick` and nothing else. Every step may be the last one of this process, and the next tick
goes on from there: what was settled is in the store, and each step finds its own traces. Nothing is written once the lease is another's.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipelines.run.directory import RunDirectory
from pipelines.run.registration import register_run
from pipelines.run.result import RunResult, finished_result
from pipelines.schedules.cron import due, parse_cron
from pipelines.schedules.launcher import ChildProcess, RunExit, RunLauncher, RunningRun, RunRequest
from pipelines.schedules.lease import HeldLease, hold_lease
from pipelines.schedules.notify import notify
from pipelines.schedules.planning import local_copy, plan_run
from pipelines.schedules.records import RunOutcome, RunPlan, Schedule, Tick, TickKind, TickStatus, tick_run_id
from pipelines.schedules.store import ScheduleStore
from rlad.errors import (
    AliasConflictError,
    ConfigError,
    ContractError,
    DataError,
    DeadlineError,
    LeaseHeldError,
    LeaseLostError,
    RladError,
    RunFailedError,
    ScheduleError,
    TickInterruptedError,
)
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.promotion import decide
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import PRODUCTION, ModelVersion

logger = logging.getLogger(__name__)

BEST = "best"
"""Alias of the version with the highest accuracy on the frozen evaluation."""

# How often a run that goes on is looked at: for its end, its deadline, the lease.
_WATCH_S = 0.5
# Somebody else may move an alias while a student is judged; then it is judged again, by what is there now.
_DECISIONS = 5
# What no second attempt changes.
_FINAL = (ConfigError, DataError, ContractError, DeadlineError, ScheduleError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticker:
    """What a tick works with.

    Attributes:
        stop: set to end in order: the run is stopped, and the next tick continues it.
        clock: seconds since the epoch.
    """

    store: ScheduleStore
    launcher: RunLauncher = field(default_factory=ChildProcess)
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.time


def tick(name: str, ticker: Ticker, *, kind: TickKind = "cron") -> list[Tick]:
    """Do what a schedule has to do now, to its end.

    Args:
        kind: `manual` runs now, whatever the clock says.

    Returns:
        The ticks that ended: an unfinished one that was resumed, then a new one; none where nothing is due.

    Raises:
        ScheduleError: no such schedule, the lease was lost, or this process was told to end.
    """
    schedule = ticker.store.schedule(name)
    try:
        with hold_lease(ticker.store, name, schedule.config.lease_s, stop=ticker.stop) as held:
            schedule = ticker.store.schedule(name)  # it may have been changed while the lease was waited for
            ended = [
                _TickAtWork(ticker, schedule, held, unfinished).carry_out()
                for unfinished in ticker.store.unfinished(name)
            ]
            opened = _open(ticker, schedule, held, kind)
            return ended if opened is None else [*ended, _TickAtWork(ticker, schedule, held, opened).carry_out()]
    except LeaseHeldError as error:
        return _refuse(ticker, schedule, kind, str(error))


def is_waiting(schedule: Schedule, ticker: Ticker) -> bool:
    """Whether nobody works on a schedule that has something to do: a run whose ticker is gone, or a tick that is due."""
    if schedule.lease_expires_at is not None and schedule.lease_expires_at >= ticker.clock():
        return False
    return bool(ticker.store.unfinished(schedule.name)) or _look(ticker, schedule, "cron") is not None


def _open(ticker: Ticker, schedule: Schedule, held: HeldLease, kind: TickKind) -> Tick | None:
    """The tick that is due, if one is."""
    look = _look(ticker, schedule, kind)
    if look is None:
        return None
    scheduled_at, coalesced, is_late = look
    return ticker.store.open_tick(
        held.lease,
        kind=kind,
        scheduled_at=scheduled_at,
        run_id=None if is_late else tick_run_id(schedule.name, scheduled_at, kind=kind),
        status="missed" if is_late else "running",
        coalesced=coalesced,
    )


def _refuse(ticker: Ticker, schedule: Schedule, kind: TickKind, reason: str) -> list[Tick]:
    """Record that a tick found another one at work, unless that one stands for the same time."""
    look = _look(ticker, schedule, kind)
    if look is None:
        return []
    refused = ticker.store.record_refused(schedule.name, kind=kind, scheduled_at=look[0], reason=reason)
    if trouble := notify(schedule.config.notify, refused, model=schedule.config.model):
        logger.warning("not_told schedule=%s error=%s", schedule.name, trouble)
    return [refused]


def _look(ticker: Ticker, schedule: Schedule, kind: TickKind) -> tuple[float, int, bool] | None:
    """What is due now: for which time, for how many earlier ones too, and whether that is too late."""
    now, config = ticker.clock(), schedule.config
    if kind == "manual":
        return float(int(now)), 0, False
    if schedule.is_paused:
        return None
    found = due(
        parse_cron(config.cron, config.timezone),
        after=datetime.fromtimestamp(max(schedule.active_since, ticker.store.last_time(schedule.name) or 0.0), UTC),
        now=datetime.fromtimestamp(now, UTC),
        grace=timedelta(seconds=config.misfire_grace_s),
    )
    return None if found is None else (found.scheduled_at.timestamp(), found.coalesced, found.is_late)


class _TickAtWork:
    """One tick on its way to its end, under a lease."""

    def __init__(self, ticker: Ticker, schedule: Schedule, held: HeldLease, tick: Tick) -> None:
        self._ticker, self._schedule, self._held, self._tick = ticker, schedule, held, tick
        self._config, self._directory = schedule.config, schedule.directory

    def carry_out(self) -> Tick:
        """SubmitGroup the tick to its end, from wherever it stands, by as many attempts as it has left."""
        while self._tick.status == "running":
            if self._tick.attempts > self._config.retries:
                self._end("failed", self._tick.reason or f"its ticker died in each of {self._tick.attempts} attempts")
                break
            self._save(attempts=self._tick.attempts + 1)
            try:
                self._attempt()
            except TickInterruptedError:
                self._save(attempts=self._tick.attempts - 1)  # nobody's fault
                raise
            except LeaseLostError:
                raise
            except (RladError, OSError) as error:
                self._after(error)
        if trouble := notify(self._config.notify, self._tick, model=self._config.model):
            self._save(notice=trouble)
        return self._tick

    def _attempt(self) -> None:
        assert self._tick.run_id is not None
        plan = self._tick.plan or plan_run(
            self._schedule, self._tick.run_id, self._ticker.store.seen_files(self._schedule.name)
        )
        if plan is None:
            self._end(
                "skipped",
                f"no file that matches {self._config.prompts and self._config.prompts.pattern} has prompts to train on",
            )
            return
        self._save(plan=plan)
        self._run()
        result = self._result()
        registry = ModelRegistry.open(self._config.registry)
        self._held.require()  # the registry knows no lease
        parent = f"{self._config.model}@{plan.parent}" if plan.parent is not None else None
        version = register_run(registry, self._config.model, result.run, parent=parent)
        outcome = self._decide(registry, plan, version, result)
        given_up = registry.retain(self._config.model, self._config.keep_versions)
        self._save(outcome=replace(outcome, given_up=tuple(given_up)))
        self._tidy(plan)
        self._end("finished", None)

    # The run

    def _run(self) -> None:
        assert self._tick.run_id is not None
        config = self._directory.config(self._tick.run_id)
        command = "run" if yaml.safe_load(config.read_text())["offline"] is None else "offline"
        address = ["--address", self._config.address] if self._config.address else []
        self._execute([command, str(config), "--run-dir", str(self._run_directory.path), "--resume", *address])

    def _result(self) -> RunResult:
        run = self._run_directory
        result = finished_result(run.read_config(), run)
        if result is None:
            raise RunFailedError(f"the run's process ended well, but {run.path} does not hold a finished run")
        return result

    def _execute(self, arguments: list[str]) -> None:
        """Run a command of ours to its end.

        Raises:
            RunFailedError: with its own reason.
            DeadlineError, LeaseLostError, TickInterruptedError: it was ended.
        """
        assert self._tick.run_id is not None
        request = RunRequest(
            arguments=tuple(arguments),
            working_dir=Path(self._config.working_dir),
            log=self._directory.log(self._tick.run_id),
        )
        ended = self._watch(self._ticker.launcher.start(request))
        if ended.status != 0:
            raise RunFailedError(f"{ended.reason} (log: {request.log})")

    def _watch(self, running: RunningRun) -> RunExit:
        spent_s, began = self._tick.spent_s, time.monotonic()
        try:
            while (ended := running.wait(_WATCH_S)) is None:
                if self._held.lost.is_set():
                    raise LeaseLostError(
                        f"the lease of {self._schedule.name} was lost: {self._tick.run_id} was ended, another ticker continues it"
                    )
                if self._ticker.stop.is_set():
                    raise TickInterruptedError(
                        f"told to end: {self._tick.run_id} was stopped, and the next tick continues it from its last checkpoint"
                    )
                if spent_s + time.monotonic() - began > self._config.deadline_s:
                    raise DeadlineError(f"not finished within deadline_s {self._config.deadline_s:g}")
        except BaseException:
            running.stop(self._config.stop_grace_s)
            raise
        finally:
            if not self._held.lost.is_set():
                self._save(spent_s=spent_s + time.monotonic() - began)
        return ended

    # After the run

    def _decide(self, registry: ModelRegistry, plan: RunPlan, version: ModelVersion, result: RunResult) -> RunOutcome:
        """Compare the student with what is in production, and let it take that place if it is better."""
        for _ in range(_DECISIONS):
            production = registry.aliases(version.name).get(PRODUCTION)
            made = self._tick.outcome
            if made is not None and made.is_promoted and production == version.version:
                return made  # by a ticker that died right then
            incumbent, source = self._evaluation_of(registry, plan, production, result)
            decision = decide(result.after, incumbent, margin=self._config.margin)
            outcome = RunOutcome(
                before=result.before.overall.mean,
                after=result.after.overall.mean,
                version=version.version,
                incumbent=production,
                incumbent_source=source,
                is_promoted=decision.promote,
                reason=decision.reason,
                difference=decision.difference,
                interval=decision.interval,
            )
            self._save(outcome=outcome)  # before the alias moves, or nobody would know why it did
            self._held.require()
            try:
                if decision.promote:
                    registry.promote(
                        version.name,
                        version.version,
                        expected=production,
                        reason=f"{self._tick.run_id}: {decision.reason}",
                    )
                self._note_best(registry, version)
            except AliasConflictError as error:
                logger.warning("alias_moved schedule=%s error=%s", self._schedule.name, error)
                continue
            return outcome
        raise RunFailedError(
            f"the aliases of {version.name} were moved by somebody else {_DECISIONS} times while {version.reference} was judged"
        )

    def _evaluation_of(
        self, registry: ModelRegistry, plan: RunPlan, production: int | None, result: RunResult
    ) -> tuple[EvaluationSummary | None, Any]:
        """The incumbent on the very same frozen evaluation: as the run's start, as its own run had it, or asked now."""
        if production is None:
            return None, None
        if production == plan.parent:
            return result.before, "the run's start"
        for other in self._ticker.store.finished():
            was = other.plan
            same = was is not None and (was.registry, was.model, was.evaluation_fingerprint) == (
                plan.registry,
                plan.model,
                plan.evaluation_fingerprint,
            )
            if same and other.outcome is not None and other.outcome.version == production:
                return registry.get(plan.model, production).evaluation, "its own run"
        return self._evaluate(registry, production), "evaluated now"

    def _evaluate(self, registry: ModelRegistry, version: int) -> EvaluationSummary:
        assert self._tick.run_id is not None
        output = self._directory.incumbent_evaluation(self._tick.run_id, version)
        figures = output / "evaluation.json"
        if not figures.is_file():
            shutil.rmtree(output, ignore_errors=True)  # what an attempt left that was ended
            model, config = local_copy(registry, self._schedule, version), self._directory.config(self._tick.run_id)
            address = [f"cluster.address={self._config.address}"] if self._config.address else []
            self._execute(["eval", str(model), "--config", str(config), "--output", str(output), *address])
        return EvaluationSummary.from_dict(json.loads(figures.read_text())["sets"]["evaluation"])

    def _note_best(self, registry: ModelRegistry, version: ModelVersion) -> None:
        """Let `best` lead to the most accurate version: the point estimate, since it is for people and for retention, not for users."""
        best = registry.aliases(version.name).get(BEST)
        if best is not None:
            known = registry.get(version.name, best).evaluation
            if (
                known.prompts.keys() == version.evaluation.prompts.keys()
                and known.overall.mean >= version.evaluation.overall.mean
            ):
                return
        registry.set_alias(
            version.name,
            BEST,
            version.version,
            expected=best,
            reason=f"{version.evaluation.overall.mean:.1%} on the frozen evaluation",
        )

    def _tidy(self, plan: RunPlan) -> None:
        """Remove the copies of earlier students; the one that this run started from is likely the next one's."""
        kept = Path(plan.student)
        for copy in self._directory.students.glob("*"):
            if copy != kept and copy not in kept.parents:
                shutil.rmtree(copy, ignore_errors=True)

    # The record

    @property
    def _run_directory(self) -> RunDirectory:
        assert self._tick.run_id is not None
        return RunDirectory(self._directory.run(self._tick.run_id))

    def _after(self, error: Exception) -> None:
        """What an attempt's failure means: another attempt after a pause, or the end."""
        attempts = self._tick.attempts
        if isinstance(error, _FINAL) or attempts > self._config.retries:
            self._end("failed", str(error))
            return
        wait_s = self._config.retry_wait_s * 2 ** (attempts - 1)
        logger.warning(
            "attempt_failed run=%s attempt=%d retry_in_s=%g error=%s", self._tick.run_id, attempts, wait_s, error
        )
        self._save(reason=str(error))
        if self._ticker.stop.wait(wait_s):
            raise TickInterruptedError(
                f"told to end while {self._tick.run_id} waited for its next attempt: the next tick continues it"
            )

    def _end(self, status: TickStatus, reason: str | None) -> None:
        seen = self._tick.plan.new_files if status == "finished" and self._tick.plan is not None else ()
        ended = replace(self._tick, status=status, reason=reason, ended_at=self._ticker.clock())
        self._tick = self._ticker.store.save(self._held.lease, ended, seen=seen)
        logger.info(
            "tick_ended schedule=%s run=%s event=%s reason=%s", ended.schedule, ended.run_id, ended.event, reason
        )

    def _save(self, **changes: Any) -> None:
        self._tick = self._ticker.store.save(self._held.lease, replace(self._tick, **changes))
