"""What the runs of a comparison say: means and spreads over seeds, and whether two methods differ by more than chance.

The unit of a claim about a method is a training run, so the claim rests on the paired t interval over seeds: the two runs of a seed share start, prompts and
their order. With three seeds it is wide, which is the truth about three seeds. A permutation of signs over seeds could not help: of three pairs there are
eight arrangements, so its p-value is never below 0.25. Beside it a sign permutation over prompts asks the narrower question whether these very students
differ on prompts like these; it sees the draw of the prompts, which the interval over seeds does not. A difference counts where both p-values are small,
after Holm's correction for the number of methods compared with the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from rlad.errors import ContractError
from rlad.evaluation.accuracy import CONFIDENCE, EvaluationSummary

ALL = "all"
"""The column of all prompts together."""

_PERMUTATIONS = 20_000

Verdict = Literal["better", "worse", "equal", "within the noise", "one seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What one finished run has recorded.

    Attributes:
        steps: one mapping of metrics a trained step.
        evaluations: by trained steps; the first is of the common start.
        uses_teacher: whether every response was scored by a teacher.
    """

    method: str
    seed: int
    steps: Sequence[Mapping[str, float]]
    evaluations: Mapping[int, EvaluationSummary]
    uses_teacher: bool

    @property
    def start(self) -> EvaluationSummary:
        return self.evaluations[min(self.evaluations)]

    @property
    def final(self) -> EvaluationSummary:
        return self.evaluations[max(self.evaluations)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation (n - 1) of one value a seed. `sd` is None of a single one."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(mean=float(np.mean(values)), sd=float(np.std(values, ddof=1)) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method costs: means over steps and runs, sums over the steps of a run; None where the runs recorded no such thing.

    Attributes:
        step_s: seconds of a step.
        exposed_scoring_s: seconds of a step in which only teacher and verifiers were waited for.
        generated_tokens: response tokens that the student generated.
        teacher_tokens: response tokens that the teacher scored; in offline distillation, those of its traces that were trained on.
        training_s: seconds of all steps.
    """

    step_s: float | None
    exposed_scoring_s: float | None
    generated_tokens: float | None
    teacher_tokens: float | None
    training_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A method against the first one, in accuracy over all prompts after training.

    Attributes:
        difference: mean over seeds; positive where the method is better than the reference.
        low, high: 95% interval of Student's t over the seeds' differences; None with one seed.
        p_seeds: two-sided, of that t; None with one seed.
        p_prompts: two-sided, of the sign permutation over prompts.
        p_value: the larger of both, after Holm's correction for the number of `comparisons`.
        seeds, prompts: how many pairs of each.
    """

    method: str
    reference: str
    difference: float
    low: float | None
    high: float | None
    p_seeds: float | None
    p_prompts: float
    p_value: float
    comparisons: int
    seeds: int
    prompts: int
    verdict: Verdict

    def sentence(self) -> str:
        """The finding in plain words."""
        points = f"{100 * self.difference:+.1f} points"
        if self.low is None or self.high is None:
            told = "do" if self.p_prompts < 1 - CONFIDENCE else "do not"
            return (
                f"{self.method} against {self.reference}: {points} with one seed. These two students {told} differ on such prompts by more than their draw "
                f"explains ({p_text(self.p_prompts)}); one seed says nothing about another, so the methods cannot be ranked."
            )
        corrected = f" corrected for {self.comparisons} comparisons" if self.comparisons > 1 else ""
        interval = f"95% interval {100 * self.low:+.1f} to {100 * self.high:+.1f} over {self.seeds} seeds"
        evidence = f"{points}, {interval}, {p_text(self.p_value)}{corrected}"
        if self.verdict in ("better", "worse"):
            return f"{self.method} is {self.verdict} than {self.reference} ({evidence})."
        if self.verdict == "equal":
            return f"{self.method} and {self.reference} are equal for practical purposes ({evidence})."
        hint = " The interval alone leaves 0 out; more seeds would settle it." if self.low > 0 or self.high < 0 else ""
        return f"{self.method} and {self.reference} are within the noise of each other ({evidence}).{hint}"


def p_text(p_value: float) -> str:
    """`p = 0.021`, and never the zero that no test gives."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def columns_of(runs: Sequence[RunRecord]) -> list[str]:
    """The table's columns: the evaluation's groups, then all prompts."""
    return [*runs[0].final.groups, ALL]


def accuracy_of(summary: EvaluationSummary, column: str) -> float:
    return (summary.overall if column == ALL else summary.groups[column]).mean


def accuracy_spreads(runs: Sequence[RunRecord]) -> dict[str, dict[str, Spread]]:
    """Accuracy after training by method and column, over seeds. `start` comes first: every run's start, a seed once."""
    columns = columns_of(runs)
    starts = {run.seed: run.start for run in runs}
    table = {
        "start": {column: Spread.of([accuracy_of(start, column) for start in starts.values()]) for column in columns}
    }
    for method, own in by_method(runs).items():
        table[method] = {column: Spread.of([accuracy_of(run.final, column) for run in own]) for column in columns}
    return table


def curves(runs: Sequence[RunRecord], column: str) -> dict[str, dict[int, Spread]]:
    """Accuracy by method and trained steps, at the steps at which every seed was evaluated."""
    found: dict[str, dict[int, Spread]] = {}
    for method, own in by_method(runs).items():
        steps = set.intersection(*(set(run.evaluations) for run in own))
        found[method] = {
            step: Spread.of([accuracy_of(run.evaluations[step], column) for run in own]) for step in sorted(steps)
        }
    return found


def metric_curves(runs: Sequence[RunRecord], metric: str) -> dict[str, dict[int, Spread]]:
    """A step metric by method and trained steps, where every seed has it. A method that never records it is left out."""
    found: dict[str, dict[int, Spread]] = {}
    for method, own in by_method(runs).items():
        values = [{int(line["step"]): float(line[metric]) for line in run.steps if metric in line} for run in own]
        steps = sorted(set.intersection(*(set(each) for each in values)))
        if steps:
            found[method] = {step: Spread.of([each[step] for each in values]) for step in steps}
    return found


def costs(runs: Sequence[RunRecord]) -> dict[str, Cost]:
    """Cost by method."""
    return {method: _cost(own) for method, own in by_method(runs).items()}


def by_method(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by method, in the order of their first appearance."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def differences(runs: Sequence[RunRecord], *, margin: float) -> list[Difference]:
    """Every method against the first.

    Args:
        margin: an interval inside it, on both sides of 0, counts as equal.

    Raises:
        ContractError: runs of one seed were evaluated on different prompts, or a method has no seed in common with the first.
    """
    methods = by_method(runs)
    (reference, first), *others = methods.items()
    pairs = [_paired(method, own, reference, first) for method, own in others]
    corrected = holm([max(pair["p_seeds"] or 0.0, pair["p_prompts"]) for pair in pairs])
    return [
        Difference(**pair, p_value=p_value, comparisons=len(pairs), verdict=_verdict(pair, p_value, margin))
        for pair, p_value in zip(pairs, corrected, strict=True)
    ]


def paired_t(pairs: Sequence[float]) -> tuple[float, float, float]:
    """95% interval of the mean of paired differences, and the two-sided p-value of its being 0, by Student's t."""
    values = np.asarray(pairs, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    if error == 0.0:
        return mean, mean, 1.0 if mean == 0.0 else 0.0
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


def sign_permutation(pairs: Sequence[float]) -> float:
    """Two-sided p-value of paired differences under random signs: exact where there are few, by sampling where there are many."""
    values = np.asarray(pairs, dtype=np.float64)
    values = values[values != 0.0]  # a sign changes nothing in them
    if len(values) == 0:
        return 1.0
    result = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, and so on, never falling."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _paired(method: str, own: Sequence[RunRecord], reference: str, first: Sequence[RunRecord]) -> dict[str, Any]:
    mine, theirs = ({run.seed: run.final.prompts for run in runs} for runs in (own, first))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        raise ContractError(f"{method} and {reference} have no seed in common: only runs of one seed are pairs")
    prompts = sorted(theirs[seeds[0]])
    if not prompts or any(sorted(side[seed]) != prompts for side in (mine, theirs) for seed in seeds):
        raise ContractError(
            f"{method} and {reference} were not evaluated on the same prompts, or the runs did not record them by prompt"
        )
    table = np.array(
        [[mine[seed][prompt] - theirs[seed][prompt] for prompt in prompts] for seed in seeds]
    )  # [seeds, prompts]
    by_seed = table.mean(axis=1)
    low, high, p_seeds = paired_t(by_seed.tolist()) if len(seeds) > 1 else (None, None, None)
    return {
        "method": method,
        "reference": reference,
        "difference": float(by_seed.mean()),
        "low": low,
        "high": high,
        "p_seeds": p_seeds,
        "p_prompts": sign_permutation(table.mean(axis=0).tolist()),
        "seeds": len(seeds),
        "prompts": len(prompts),
    }


def _verdict(pair: Mapping[str, Any], p_value: float, margin: float) -> Verdict:
    if pair["low"] is None:
        return "one seed"
    if max(abs(pair["low"]), abs(pair["high"])) < margin:
        return "equal"
    if p_value < 1 - CONFIDENCE:
        return "better" if pair["difference"] > 0 else "worse"
    return "within the noise"


def _cost(runs: Sequence[RunRecord]) -> Cost:
    def total(run: RunRecord, metric: str) -> float | None:
        values = [line[metric] for line in run.steps if metric in line]
        return float(sum(values)) if values else None

    def mean_over_runs(metric: str, *, a_step: bool) -> float | None:
        sums = [(total(run, metric), len(run.steps)) for run in runs]
        values = [value / steps if a_step else value for value, steps in sums if value is not None]
        return float(np.mean(values)) if values else None

    generated = mean_over_runs("rollout/response_tokens", a_step=False)
    scored = generated if runs[0].uses_teacher else 0.0
    traces = mean_over_runs("traces/response_tokens", a_step=False)
    return Cost(
        step_s=mean_over_runs("time/step_s", a_step=True),
        exposed_scoring_s=mean_over_runs("time/score_s", a_step=True),
        generated_tokens=generated,
        teacher_tokens=traces if traces is not None else scored,
        training_s=mean_over_runs("time/step_s", a_step=False),
    )
