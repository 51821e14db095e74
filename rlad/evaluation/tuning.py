"""Choice of a method's settings among its trials, by accuracy on validation prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlad.evaluation.comparison import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Result of a trial run.

    Attributes:
        method: Name of the method.
        condition: Condition of the run; None if it does not depend on one.
        number: Number of the trial, from 1.
        parameters: Values that were tried, by dotted key.
        start: Accuracy on the validation prompts before training.
        accuracy: The same after training.
        training_s: Time of all steps, in seconds.
    """

    method: str
    condition: str | None
    number: int
    parameters: Mapping[str, Any]
    start: float
    accuracy: float
    training_s: float

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self)


def best_trials(trials: Sequence[TrialResult]) -> dict[tuple[str, str | None], TrialResult]:
    """Return the trial with the highest accuracy by method and condition; of equal ones the first."""
    found: dict[tuple[str, str | None], TrialResult] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        place = (trial.method, trial.condition)
        if place not in found or trial.accuracy > found[place].accuracy:
            found[place] = trial
    return found


def worst_runs(runs_by_condition: Mapping[str, Sequence[RunRecord]]) -> list[RunRecord]:
    """Return each method's run with the lowest accuracy over the conditions, by seed.

    A method that does not depend on the conditions has the same run under all of them.
    """
    worst: dict[tuple[str, int], RunRecord] = {}
    for runs in runs_by_condition.values():
        for run in runs:
            place = (run.method, run.seed)
            if place not in worst or run.final.overall.mean < worst[place].final.overall.mean:
                worst[place] = run
    return list(worst.values())
