"""One tick of a schedule.

    acquire the lease and open the tick that is due -> choose the student, refresh the prompts -> run -> register
    -> decide on promotion -> notify

An unfinished tick is continued first; the tick that is due is then opened after it.

The daemon, a CronJob and `rlad schedule run-now` all call `tick`. The process may die after any step: the store holds
what was decided, each step recognises its own results, and the next tick continues. A ticker that has lost its lease
writes nothing.
"""

from __future__ import annotations

import logging
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.run.directory import RunDirectory
from pipelines.run.registration import register_run
from pipelines.run.result import RunResult, finished_result
from pipelines.schedules.cron import due, parse_cron
from pipelines.schedules.execution import Ticker, TickExecution
from pipelines.schedules.lease import hold_lease
from pipelines.schedules.notify import notify
from pipelines.schedules.planning import plan_run
from pipelines.schedules.promotion.decision import decide_promotion
from pipelines.schedules.records import CronHistory, NewTick, RunPlan, Schedule, Tick, TickKind, tick_run_id
from pipelines.webhooks.delivery import deliver_quietly
from rlad.errors import (
    ConfigError,
    ContractError,
    DataError,
    DeadlineError,
    LeaseHeldError,
    LeaseLostError,
    RladError,
    RunFailedError,
    ScheduleError,
    StopRequestedError,
    TickInterruptedError,
)
from rlad.registry.registry import ModelRegistry

logger = logging.getLogger(__name__)

# Delay up to which a tick counts as in time with `catch_up: skip`. CronJobs start within a minute.
_PROMPT_S = 60.0
# Errors that a further attempt cannot avoid.
_FINAL_ERRORS = (ConfigError, DataError, ContractError, DeadlineError, ScheduleError)


def tick(name: str, ticker: Ticker, *, kind: TickKind = "cron") -> list[Tick]:
    """Carry out the due work of a schedule to its end.

    Args:
        name: Name of the schedule.
        ticker: Environment of the tick.
        kind: `cron` runs only when a time is due; `manual` runs now.

    Returns:
        The ticks that ended: unfinished ones that were continued, then a new one. Empty if nothing is due.

    Raises:
        ScheduleError: The schedule does not exist, the lease was lost, or `ticker.stop` was set.
    """
    store, schedule = ticker.store, ticker.store.schedule(name)

    def find_due(current: Schedule, history: CronHistory) -> NewTick | None:
        return due_tick(current, history, kind=kind, now=ticker.clock())

    try:
        with hold_lease(store, name, schedule.config.lease_s, stop=ticker.stop, find_due=find_due) as held:
            schedule = store.schedule(name)  # may have changed while this process waited for the lease
            ended = [_carry_out(TickExecution(ticker, schedule, held, found)) for found in store.unfinished(name)]
            opened = held.opened
            if opened is None:  # a time may have come while the unfinished runs were continued
                opened = store.open_due(held.lease, find_due)
            if opened is not None and opened.id not in {tick.id for tick in ended}:
                ended.append(_carry_out(TickExecution(ticker, schedule, held, opened)))
            return ended
    except LeaseHeldError as error:
        refused = store.record_refused(name, find_due, reason=str(error))
    if refused is None:
        return []
    if failure := notify(schedule.config.notify, refused, model=schedule.config.model):
        logger.warning("notification_failed schedule=%s error=%s", name, failure)
    return [refused]


def is_waiting(schedule: Schedule, ticker: Ticker) -> bool:
    """Return True if a schedule has an unfinished run or a due tick, and no ticker holds its lease."""
    now, store = ticker.clock(), ticker.store
    if schedule.lease_expires_at is not None and schedule.lease_expires_at >= now:
        return False
    if store.unfinished(schedule.name):
        return True
    return due_tick(schedule, store.cron_history(schedule.name), kind="cron", now=now) is not None


def due_tick(schedule: Schedule, history: CronHistory, *, kind: TickKind, now: float) -> NewTick | None:
    """Return the tick that is due at `now`, or None.

    A time that was refused stays due for the grace period. After it, the refused record stands, and the time is not
    recorded as missed too.
    """
    config = schedule.config
    if kind == "manual":
        requested_at = float(int(now))
        run_id = tick_run_id(schedule.name, requested_at, kind=kind)
        return NewTick(kind=kind, scheduled_at=requested_at, run_id=run_id, status="running")
    if schedule.is_paused:
        return None
    if history.triggered_at is not None:
        run_id = tick_run_id(schedule.name, history.triggered_at, kind="trigger")
        return NewTick(kind="trigger", scheduled_at=history.triggered_at, run_id=run_id, status="running")
    after = max(schedule.active_since, history.last_opened or 0.0)
    if config.start_at is not None:
        after = max(after, config.start_at.timestamp() - 1)  # a time at the start date counts
    end = now if config.end_at is None else min(now, config.end_at.timestamp())
    grace_s = min(config.misfire_grace_s, _PROMPT_S) if config.catch_up == "skip" else config.misfire_grace_s
    found = due(
        parse_cron(config.cron, config.timezone),
        after=datetime.fromtimestamp(after, UTC),
        now=datetime.fromtimestamp(end, UTC),
        grace=timedelta(seconds=grace_s - (now - end)),
        in_order=config.catch_up == "all",
    )
    if found is None:
        return None
    scheduled_at, coalesced = found.scheduled_at.timestamp(), found.coalesced
    if found.is_late:
        if history.last_refused is not None and scheduled_at <= history.last_refused:
            return None
        return NewTick(kind=kind, scheduled_at=scheduled_at, run_id=None, status="missed", coalesced=coalesced)
    run_id = tick_run_id(schedule.name, scheduled_at, kind=kind)
    return NewTick(kind=kind, scheduled_at=scheduled_at, run_id=run_id, status="running", coalesced=coalesced)


def _carry_out(work: TickExecution) -> Tick:
    """Bring a tick to its end from its present state, with the attempts that it has left, and send notifications.

    If another process works in the run's directory, such as the run of a frozen ticker, the tick waits for its end.
    Continuing that run is the same attempt and not a further one. So is adopting the job of another ticker.
    """
    was_taken = False
    while work.tick.status == "running":
        before, waited = work.tick.attempts, False
        try:
            # The other process may have ended since it was seen.
            waited = work.tick.job is not None or work.wait_for_run() or was_taken
            if before > work.config.retries and not waited:
                work.end("failed", work.tick.reason or f"its ticker died in each of {before} attempts")
                break
            if work.tick.job is None:
                work.wait_for_slot()
            work.save(attempts=max(before, 1) if waited else before + 1)
            _attempt(work)
        except TickInterruptedError:
            work.save(attempts=before)  # a clean stop is not a failed attempt
            if work.tick.job is None:
                work.ticker.store.queue.free(work.schedule.name)
            raise
        except LeaseLostError:
            raise
        except StopRequestedError as stop:
            work.end("stopped", str(stop))
        except (RladError, OSError) as error:
            if isinstance(error, RunFailedError) and not waited and work.is_run_active():
                logger.warning("run_is_active schedule=%s run=%s error=%s", work.schedule.name, work.run_id, error)
                work.save(reason=str(error))
                was_taken = True
                continue  # another process took the directory first
            _retry_or_fail(work, error)
    if failure := notify(work.config.notify, work.tick, model=work.config.model):
        work.save(notice=failure)
    if work.tick.outcome is not None:
        deliver_quietly(work.config.registry)
    return work.tick


def _attempt(work: TickExecution) -> None:
    """Plan, run, register, decide."""
    plan = work.tick.plan or plan_run(work.schedule, work.run_id, work.ticker.store.seen_files(work.schedule.name))
    if plan is None:
        pattern = work.config.prompts and work.config.prompts.pattern
        work.end("skipped", f"no file that matches {pattern} has prompts to train on")
        return
    if work.tick.plan is None and plan.inputs and work.tick.kind != "manual":
        last = next((tick.plan for tick in reversed(work.history()) if tick.status == "finished" and tick.plan), None)
        if last is not None and last.inputs == plan.inputs:
            work.end("skipped", "prompts, teachers and settings have not changed since the last finished run")
            return
    work.save(plan=plan)
    _run(work)
    result = _read_result(work)
    registry = ModelRegistry.open(work.config.registry)
    work.held.require()  # the registry does not check the lease
    parent = f"{work.config.model}@{plan.parent}" if plan.parent is not None else None
    version = register_run(registry, work.config.model, result.run, parent=parent)
    outcome = decide_promotion(work, registry, plan, version, result)
    given_up = registry.retain(work.config.model, work.config.keep_versions)
    work.save(outcome=replace(outcome, given_up=tuple(given_up)))
    _remove_old_students(work, plan)
    work.end("finished", None)


def _retry_or_fail(work: TickExecution, error: Exception) -> None:
    """Wait for the next attempt, or end the tick if the error is final or no attempt is left."""
    attempts = work.tick.attempts
    if isinstance(error, _FINAL_ERRORS) or attempts > work.config.retries:
        work.end("failed", str(error))
        return
    wait_s = retry_wait_s(work.config.retry_wait_s, attempts)
    logger.warning("attempt_failed run=%s attempt=%d retry_in_s=%g error=%s", work.run_id, attempts, wait_s, error)
    work.save(reason=str(error))
    if work.ticker.stop.wait(wait_s):
        raise TickInterruptedError(
            f"interrupted while {work.run_id} waited for its next attempt; the next tick continues it"
        )


def retry_wait_s(first_s: float, attempts: int) -> float:
    """Return the pause after a failed attempt: doubles with each attempt, and varies at random by up to a quarter.

    Schedules that failed together, for example because the registry did not answer, then do not return together.
    """
    return first_s * 2.0 ** (attempts - 1) * random.uniform(0.75, 1.25)


# The run


def _run(work: TickExecution) -> None:
    job = work.tick.job
    if job is not None and job.command != work.run_id:
        return  # the run had ended when a job evaluated the incumbent
    config, run_dir = work.directory.config(work.run_id), work.directory.run(work.run_id)
    address = ["--address", work.address] if work.address else []
    command = ["run", str(config), "--run-dir", str(run_dir), "--resume", *address]
    work.execute(command, name=work.run_id, output=run_dir)


def _read_result(work: TickExecution) -> RunResult:
    run = RunDirectory(work.directory.run(work.run_id))
    result = finished_result(run.read_config(), run)
    if result is None:
        raise RunFailedError(f"the run's process succeeded, but {run.path} does not hold a finished run")
    return result


def _remove_old_students(work: TickExecution, plan: RunPlan) -> None:
    """Remove local copies of students. The one that this run started from stays, since the next run may use it too."""
    kept = Path(plan.student)
    for copy in work.directory.students.glob("*"):
        if copy != kept and copy not in kept.parents:
            shutil.rmtree(copy, ignore_errors=True)
