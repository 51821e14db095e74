"""What a run came to, read from its directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig
from rlad.evaluation.accuracy import EvaluationSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to: the evaluations of the student before and after."""

    run: RunDirectory
    before: EvaluationSummary
    after: EvaluationSummary


def finished_result(config: RunConfig, run: RunDirectory) -> RunResult | None:
    """The result of a run that has nothing left to do; None otherwise."""
    before, after = (run.evaluation_at(step) for step in (0, config.training.steps))
    return RunResult(run=run, before=before, after=after) if before and after and run.export.is_dir() else None


def run_id_of(config: RunConfig, run: RunDirectory) -> str:
    """Names Ray actors, Serve applications and shared memory: two runs of one name in two directories must not meet."""
    return f"{config.name}-{hashlib.sha256(str(run.path).encode()).hexdigest()[:8]}"
