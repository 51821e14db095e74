"""What the store keeps of a schedule and of each of its ticks. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlad.config.schedule import ScheduleConfig, TickEvent

TickKind = Literal["cron", "manual"]
TickStatus = Literal["running", "finished", "failed", "refused", "missed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as it stands.

    Attributes:
        evaluation_fingerprint: of the frozen evaluation, its prompts and how they are sampled.
        active_since: when it was added or resumed; nothing before that is due.
        lease_owner, lease_expires_at: the ticker that works on it, if one does.
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
class ScheduleDirectory:
    """Paths of a schedule's files. Every file name lives here and nowhere else."""

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

    def incumbent_evaluation(self, run_id: str, version: int) -> Path:
        return self.path / "evaluations" / f"{run_id}-against-{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on a schedule: void as soon as another one has a larger token."""

    schedule: str
    token: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFile:
    """A prompt file by its path and the SHA-256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a tick settled before its run started.

    Attributes:
        registry, model: where the student goes.
        student: model directory, or `starter:RECIPE/ROLE`.
        parent: version of the registry's model that this is; None of the configuration's own student.
        num_prompts, files, new_files: of a schedule with a pattern; how many prompts, from which files, and which of them were new.
        left_out: prompts that are also in the frozen evaluation, so they are not trained on.
        evaluation_fingerprint: of the frozen evaluation at that time.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a tick made of its run.

    Attributes:
        before, after: accuracy (mean@k) on the frozen evaluation at the run's start and end.
        version: of the registry's model.
        incumbent: the version that was in production.
        incumbent_source: where the incumbent's evaluation is from; None without an incumbent.
        is_promoted: whether the student took its place.
        reason: of the decision, in one sentence.
        difference, interval: candidate minus incumbent, and its 95% confidence interval.
        given_up: versions that retention took away.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One tick of a schedule, with its run if it has one.

    Attributes:
        id: of the store.
        scheduled_at: the time it stands for; of a manual one, when it was asked for.
        run_id: made of the schedule and that time, so the same time never runs twice.
        coalesced: earlier times that it stands for too.
        attempts: times the run was started; those that were ended in order, to go on later, do not count.
        spent_s: seconds that these took; an attempt that died with its ticker took none, since nobody was left to say.
        reason: why it ended as it did, where that needs saying.
        notice: how telling of it went, where it did not go well.
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

    def with_id(self, number: int) -> Tick:
        return replace(self, id=number)

    @property
    def event(self) -> TickEvent | None:
        """How it ended; None while it has not."""
        if self.status == "running":
            return None
        if self.status == "finished":
            return "promoted" if self.outcome is not None and self.outcome.is_promoted else "kept"
        return self.status


def tick_run_id(schedule: str, scheduled_at: float, *, kind: TickKind) -> str:
    """`nightly-20260329T010000Z`; of a run that somebody asked for, `nightly-20260329T103012Z-manual`."""
    told = datetime.fromtimestamp(scheduled_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{schedule}-{told}" + ("-manual" if kind == "manual" else "")
