"""The result of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlad.config import EvaluationConfig
from rlad.config.comparison import CompareConfig
from rlad.evaluation.comparison import ALL, Cost, Difference, RunRecord, Spread, curves


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """Result of a comparison of training methods.

    Attributes:
        config: Configuration of the comparison.
        evaluation: Evaluation settings, the same in all runs.
        accuracy: Accuracy after training, by method and group. `start` is the student before training.
        costs: Mean cost of a run, by method.
        differences: Difference of every other method from the first, in accuracy after training.
        areas: Area under the learning curve, by method; empty if no two evaluations are common to all runs.
        area_differences: Difference of every other method from the first, in that area.
        records: Records of the runs.
    """

    config: CompareConfig
    evaluation: EvaluationConfig
    accuracy: dict[str, dict[str, Spread]]
    costs: dict[str, Cost]
    differences: list[Difference]
    areas: dict[str, Spread]
    area_differences: list[Difference]
    records: list[RunRecord]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of compare.json: everything except single prompts and steps."""
        return {
            "name": self.config.name,
            "methods": {name: method.overrides for name, method in self.config.methods.items()},
            "seeds": self.config.seeds,
            "margin": self.config.margin,
            "prompts": self.records[0].final.overall.prompts,
            "samples": self.records[0].final.overall.samples,
            "group_by": self.evaluation.group_by,
            "accuracy": {
                name: {column: asdict(spread) for column, spread in row.items()} for name, row in self.accuracy.items()
            },
            "curve": {
                name: {step: asdict(spread) for step, spread in curve.items()}
                for name, curve in curves(self.records, ALL).items()
            },
            "areas": {name: asdict(spread) for name, spread in self.areas.items()},
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "differences": [_with_sentence(difference) for difference in self.differences],
            "area_differences": [_with_sentence(difference) for difference in self.area_differences],
            "runs": [
                {
                    "method": run.method,
                    "seed": run.seed,
                    "start": run.start.overall.mean,
                    "final": run.final.overall.mean,
                }
                for run in self.records
            ],
        }


def _with_sentence(difference: Difference) -> dict[str, Any]:
    return {**asdict(difference), "sentence": difference.sentence()}
