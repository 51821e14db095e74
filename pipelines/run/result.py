"""The result of a run, read from its directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig
from rlad.evaluation.accuracy import EvaluationSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Evaluations of the student before and after training."""

    run: RunDirectory
    before: EvaluationSummary
    after: EvaluationSummary


def finished_result(config: RunConfig, run: RunDirectory) -> RunResult | None:
    """Return the result of a finished run; None if work is left."""
    before, after = (run.evaluation_at(step) for step in (0, config.training.steps))
    return RunResult(run=run, before=before, after=after) if before and after and run.export.is_dir() else None


def run_id_of(config: RunConfig, run: RunDirectory) -> str:
    """Return the name of a run in Ray actors, Serve applications and shared memory.

    It includes a hash of the directory, so that two runs with one name do not collide.
    """
    return f"{config.name}-{hashlib.sha256(str(run.path).encode()).hexdigest()[:8]}"
