"""Records of the schedule store: schedules, leases and ticks. Times are in seconds since the epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlad.config.schedule import ScheduleConfig, TickEvent
from rlad.monitoring.cost import RunCost

TickKind = Literal["cron", "manual", "trigger"]
TickStatus = Literal["running", "finished", "stopped", "failed", "refused", "missed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Present state of a schedule.

    Attributes:
        config: Settings.
        evaluation_fingerprint: Fingerprint of the frozen evaluation prompts and their sampling settings.
        is_paused: True if no new runs start, because this schedule or all of them are paused.
        active_since: Time at which the schedule was added or resumed; earlier times are never due.
        lease_owner: Ticker that holds the lease; None if the lease is free.
        lease_expires_at: Expiry of the lease; None if the lease is free.
    """

    config: ScheduleConfig
    evaluation_fingerprint: str
    is_paused: bool
    active_since: float
    lease_owner: str | None
    lease_expires_at: float | None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def directory(self) -> ScheduleDirectory:
        return ScheduleDirectory(path=Path(self.config.directory))


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRow:
    """Row of the store that does not validate.

    Attributes:
        schedule: Name of the schedule that the row belongs to. Other schedules are not affected.
        table: Table of the row.
        key: Condition that selects the row.
        problem: Reason why the row is invalid.
        remedy: Way to repair or remove the row.
    """

    schedule: str
    table: str
    key: str
    problem: str
    remedy: str

    @property
    def message(self) -> str:
        return f"invalid row in {self.table} where {self.key}: {self.problem}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDirectory:
    """Paths of a schedule's files. All file names are defined here."""

    path: Path

    students = property(lambda self: self.path / "students")

    def evaluation(self, fingerprint: str) -> Path:
        return self.path / f"evaluation-{fingerprint}.jsonl"

    def run(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    def config(self, run_id: str) -> Path:
        return self.path / "configs" / f"{run_id}.yaml"

    def prompts(self, run_id: str) -> Path:
        return self.path / "prompts" / f"{run_id}.jsonl"

    def log(self, run_id: str) -> Path:
        return self.path / "logs" / f"{run_id}.log"

    def gates_config(self, run_id: str) -> Path:
        return self.path / "configs" / f"{run_id}-gates.yaml"

    def gate_prompts(self, run_id: str, gate: str) -> Path:
        return self.path / "prompts" / f"{run_id}-gate-{gate}.jsonl"

    def gates(self, run_id: str, version: int | None) -> Path:
        """Results of the gates: of the run's student, or of a registry version."""
        return self.path / "evaluations" / f"{run_id}-gates{'' if version is None else f'-of-{version}'}"

    def incumbent_evaluation(self, run_id: str, version: int) -> Path:
        return self.path / "evaluations" / f"{run_id}-against-{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Right to work on a schedule. A lease is void when another one of the schedule has a larger token."""

    schedule: str
    token: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFile:
    """Prompt file, identified by its path and the SHA-256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Decisions of a tick before its run starts.

    Attributes:
        registry: Registry that the student is registered in.
        model: Model name in the registry.
        student: Initial student: model directory, or `starter:RECIPE/ROLE`.
        parent: Registry version of the initial student; None for the configuration's own student.
        num_prompts: Number of training prompts; None without a prompt pattern.
        files: Number of prompt files.
        new_files: Prompt files that no finished run has trained on.
        left_out: Number of prompts left out because they are in the frozen evaluation or in a gate.
        evaluation_fingerprint: Fingerprint of the frozen evaluation.
        inputs: Fingerprints of prompts, teachers and settings, for `run_if: changed`; empty otherwise.
    """

    registry: str
    model: str
    student: str
    parent: int | None
    num_prompts: int | None
    files: int
    new_files: tuple[SeenFile, ...]
    left_out: int
    evaluation_fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """Result of a student on one gate.

    Attributes:
        name: Name of the gate.
        is_passed: Whether the student passed.
        reason: Reason of the result, one sentence with the figures.
        accuracy: Accuracy (mean@k) of the student.
        incumbent_accuracy: Accuracy of the version in production; None if it was not evaluated.
        prompts: Number of prompts of the gate with a judged response of the student.
        difference: `accuracy` minus that of the incumbent on the same prompts; None if it was not compared.
        interval: 95% confidence interval of the difference; None if it was not compared, or has a single prompt.
        latency_s: 95th percentile of the time of a whole response, seconds; None if it was not measured.
        incumbent_latency_s: That of the version in production; None if it was not measured.
    """

    name: str
    is_passed: bool
    reason: str
    accuracy: float
    incumbent_accuracy: float | None
    prompts: int
    difference: float | None
    interval: tuple[float, float] | None
    latency_s: float | None = None
    incumbent_latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Result of a tick's run: the registered version and the promotion decision.

    Attributes:
        before: Accuracy (mean@k) on the frozen evaluation at the run's start.
        after: Accuracy (mean@k) on the frozen evaluation at the run's end.
        version: Registry version of the trained student.
        incumbent: Version in production before the decision; None if no version was in production.
        incumbent_source: Origin of the incumbent's evaluation; None without an incumbent.
        is_promoted: True if the student is now in production.
        reason: Reason of the decision, one sentence.
        difference: Candidate accuracy minus incumbent accuracy; None without an incumbent.
        interval: 95% confidence interval of the difference; None without an incumbent.
        given_up: Versions removed by retention.
        is_requested: True if the promotion was requested, and waits for the approval of a person.
        gates: Results on the gates; empty if the student was not better, or there are no gates.
    """

    before: float
    after: float
    version: int
    incumbent: int | None
    incumbent_source: Literal["the run's start", "its own run", "evaluated now"] | None
    is_promoted: bool
    reason: str
    difference: float | None
    interval: tuple[float, float] | None
    given_up: tuple[int, ...] = ()
    is_requested: bool = False
    gates: tuple[GateOutcome, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TickJob:
    """Job of a cluster that executes a tick's command. Another ticker adopts it.

    Attributes:
        id: Id of the job.
        command: Name of the command: the run id, or that of an evaluation.
        submitted_at: Time of the submission.
    """

    id: str
    command: str
    submitted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One tick of a schedule, and its run if it has one.

    Attributes:
        schedule: Name of the schedule.
        kind: Trigger of the tick.
        status: Present status.
        scheduled_at: Scheduled time; for a manual tick, the time of the request.
        run_id: Run id, derived from the schedule and the scheduled time so that no time runs twice; None without a run.
        coalesced: Number of earlier scheduled times that this tick replaces.
        started_at: Time at which the tick was opened.
        ended_at: Time at which the tick ended; None while it runs.
        id: Row id in the store.
        attempts: Number of times the run was started. Attempts that were stopped cleanly do not count.
        spent_s: Duration of all attempts in seconds. An attempt that died with its ticker counts as zero.
        reason: Reason of the status, if one is known.
        plan: Decisions before the run; None before they are made.
        outcome: Result of the run; None before it is known.
        notice: Error of a failed notification; None if none failed.
        queued_s: Time that the tick waited for a slot of its queue, in seconds.
        job: Job of the present or last command; None without one, and after a failed attempt.
        cost: Cost of the run as of the end of its last attempt; None if it recorded none.
    """

    schedule: str
    kind: TickKind
    status: TickStatus
    scheduled_at: float
    run_id: str | None
    coalesced: int
    started_at: float
    ended_at: float | None
    id: int = 0
    attempts: int = 0
    spent_s: float = 0.0
    reason: str | None = None
    plan: RunPlan | None = None
    outcome: RunOutcome | None = None
    notice: str | None = None
    queued_s: float = 0.0
    job: TickJob | None = None
    cost: RunCost | None = None

    def with_id(self, number: int) -> Tick:
        return replace(self, id=number)

    @property
    def event(self) -> TickEvent | None:
        """Event that the tick ended with; None while it runs."""
        if self.status == "running":
            return None
        if self.status == "finished":
            if self.outcome is not None and self.outcome.is_requested:
                return "requested"
            return "promoted" if self.outcome is not None and self.outcome.is_promoted else "kept"
        return self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTick:
    """Tick to insert.

    Attributes:
        kind: Trigger of the tick.
        scheduled_at: Scheduled time.
        run_id: Run id; None without a run.
        status: `running`, or a status that ends the tick at once.
        coalesced: Number of earlier scheduled times that the tick replaces.
    """

    kind: TickKind
    scheduled_at: float
    run_id: str | None
    status: TickStatus
    coalesced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CronHistory:
    """Latest scheduled times of a schedule's cron ticks.

    Attributes:
        last_opened: Latest time whose tick ran or was recorded as missed; None before the first one. A refused tick
            does not count, because nothing was run at its time.
        last_refused: Latest time with a refused tick; None without one.
        triggered_at: Time of the first trigger that waits for a tick; None without one.
    """

    last_opened: float | None
    last_refused: float | None
    triggered_at: float | None = None


FindDue = Callable[[Schedule, CronHistory], NewTick | None]
"""Function that returns the tick that is due, or None. The store calls it while it holds the schedule's row."""


def tick_run_id(schedule: str, scheduled_at: float, *, kind: TickKind) -> str:
    """Return the run id of a tick: `nightly-20260329T010000Z`, or `nightly-20260329T103012Z-manual`."""
    time = datetime.fromtimestamp(scheduled_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{schedule}-{time}" + ("" if kind == "cron" else f"-{kind}")
