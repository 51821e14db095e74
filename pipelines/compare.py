"""`rlad compare`: train several methods over several seeds on one cluster, and test whether they differ."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from pipelines.cluster.connection import connected
from pipelines.distill import distill
from pipelines.reports.comparison_report import cost_table, result_table, write_drawings, write_page
from pipelines.reports.comparison_result import ComparisonResult
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config.comparison import Comparison, PlannedRun, PlannedTrial
from rlad.data.prompts import load_prompts
from rlad.data.records import question_key
from rlad.errors import PlanError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.comparison import RunRecord, accuracy_spreads, areas, costs, differences
from rlad.evaluation.tuning import TrialResult, best_trials, worst_runs
from rlad.integrity.durable import write_atomically

WORST = "worst"
"""Directory of the report on the worst condition of each run."""


class ComparisonDirectory:
    """Paths of a comparison.

    A run has the directory `METHOD-seedN`, inside that of its condition if it has one. Trials are in `tuning`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()

    config = property(lambda self: self.path / "compare.yaml")
    figures = property(lambda self: self.path / "compare.json")
    page = property(lambda self: self.path / "compare.html")
    tuning = property(lambda self: self.path / "tuning.json")
    lock = property(lambda self: self.path / ".lock")

    def run(self, planned: PlannedRun) -> RunDirectory:
        """Return the directory of a run."""
        folder = self.path / "tuning" if isinstance(planned, PlannedTrial) else self.path
        return RunDirectory(folder / planned.label)

    def of(self, condition: str | None) -> ComparisonDirectory:
        """Return the directory with the report of a condition."""
        return self if condition is None else ComparisonDirectory(self.path / condition)


def compare(
    comparison: Comparison, directory: ComparisonDirectory, *, resume: bool, console: Console
) -> ComparisonResult:
    """Tune the methods, train the unfinished runs, then write compare.json, compare.html and figures, and print tables.

    With conditions there is a report for each of them, and one for the worst condition of each run.

    Raises:
        PlanError: A validation prompt is an evaluation prompt.
        RunDirectoryError: The directory is not empty and `resume` is false, or another process uses it.
        RladError: A run failed. Finished runs are kept, and `resume` continues the comparison.
    """
    if directory.path.exists() and any(directory.path.iterdir()) and not resume:
        raise RunDirectoryError(
            f"{directory.path} is not empty: continue its comparison with --resume, or choose another --run-dir"
        )
    made = [folder for folder in (directory.path, *directory.path.parents) if not folder.exists()]
    directory.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunDirectoryError(f"another process is running the comparison in {directory.path}") from error
    with lock:
        _require_own_validation(comparison)
        write_atomically(directory.config, yaml.safe_dump(comparison.config.model_dump(mode="json"), sort_keys=False))
        try:
            comparison = _tuned(comparison, directory, console)
            _run_all(comparison.runs, directory, console)
        except BaseException:
            if not _has_runs(directory):
                _remove(directory, made)
            raise
        results = _results(comparison, directory)
        for condition, result in results.items():
            _write(result, directory.of(condition))
    for condition, result in results.items():
        _print(result, directory.of(condition), condition, console)
    return list(results.values())[-1]


def _results(comparison: Comparison, directory: ComparisonDirectory) -> dict[str | None, ComparisonResult]:
    """Return the result under each condition, then that of the worst ones; one result if there are no conditions."""
    if not comparison.config.conditions:
        return {None: _analyse(comparison, [_record(planned, directory.run(planned)) for planned in comparison.runs])}
    by_condition = {
        condition: [_record(planned, directory.run(planned)) for planned in comparison.under(condition)]
        for condition in comparison.config.conditions
    }
    found: dict[str | None, ComparisonResult] = {}
    for condition, records in by_condition.items():
        found[condition] = _analyse(comparison, records)
    found[WORST] = _analyse(comparison, worst_runs(by_condition))
    return found


def _write(result: ComparisonResult, directory: ComparisonDirectory) -> None:
    directory.path.mkdir(exist_ok=True)
    write_atomically(directory.figures, json.dumps(result.as_dict(), indent=2) + "\n")
    write_page(result, write_drawings(result, directory.path), directory.page)


def _print(result: ComparisonResult, directory: ComparisonDirectory, condition: str | None, console: Console) -> None:
    if condition is not None:
        console.rule("worst condition of each run" if condition == WORST else f"condition {condition}")
    console.print(result_table(result))
    console.print(cost_table(result))
    for difference in [*result.differences, *result.area_differences]:
        console.print(difference.sentence(), highlight=False)
    console.print(f"report: {directory.page}", soft_wrap=True, highlight=False)


def _require_own_validation(comparison: Comparison) -> None:
    """Refuse validation prompts that are evaluation prompts: the choice would be made on the test.

    Raises:
        PlanError: With their number.
    """
    tune = comparison.config.tune
    if tune is None:
        return
    evaluation = set(map(question_key, load_prompts(comparison.runs[0].config.evaluation.prompts)))
    validation = list(map(question_key, load_prompts(tune.prompts)))
    shared = sum(key in evaluation for key in validation)
    if shared:
        raise PlanError(
            f"{shared} of {len(validation)} prompts of tune.prompts are also evaluation prompts: choose validation "
            "prompts that no final evaluation has, for example of split train"
        )


def _tuned(comparison: Comparison, directory: ComparisonDirectory, console: Console) -> Comparison:
    """Run the unfinished trials, record all of them in tuning.json, and return the comparison with the best values."""
    if not comparison.trials:
        return comparison
    _run_all(comparison.trials, directory, console, kind="trials")
    results = []
    for trial in comparison.trials:
        record = _record(trial, directory.run(trial))
        results.append(
            TrialResult(
                method=trial.method,
                condition=trial.condition,
                number=trial.number,
                parameters=trial.parameters,
                start=record.start.overall.mean,
                accuracy=record.final.overall.mean,
                training_s=sum(line.get("time/step_s", 0.0) for line in record.steps),
            )
        )
    best = best_trials(results)
    lines = [{**each.as_dict(), "is_chosen": best[each.method, each.condition] is each} for each in results]
    write_atomically(directory.tuning, json.dumps(lines, indent=2) + "\n")
    for (method, condition), chosen in best.items():
        values = ", ".join(f"{key}={value}" for key, value in chosen.parameters.items())
        place = method if condition is None else f"{condition}/{method}"
        console.print(f"{place}: {values} ({chosen.accuracy:.1%} on validation prompts)", highlight=False)
    return comparison.tuned({place: chosen.parameters for place, chosen in best.items()})


def _analyse(comparison: Comparison, records: list[RunRecord]) -> ComparisonResult:
    """Compare finished runs from their recorded metrics.

    Raises:
        ContractError: The evaluations of two runs cannot be paired.
    """
    return ComparisonResult(
        config=comparison.config,
        evaluation=comparison.runs[0].config.evaluation,
        accuracy=accuracy_spreads(records),
        costs=costs(records),
        differences=differences(records, margin=comparison.config.margin),
        areas=areas(records),
        area_differences=differences(records, margin=comparison.config.margin, measure="area"),
        records=records,
    )


def is_finished(planned: PlannedRun, run: RunDirectory) -> bool:
    """Return whether a run has its export and the evaluations of its first and last step.

    Raises:
        ConfigError: The directory holds a run with different settings.
    """
    if not run.config.exists():
        return False
    with run.hold(planned.config, resume=True):
        return run.export.is_dir() and all(
            run.evaluation_at(step) is not None for step in (0, planned.config.training.steps)
        )


def _run_all(
    runs: Sequence[PlannedRun], directory: ComparisonDirectory, console: Console, *, kind: str = "runs"
) -> None:
    unfinished = [planned for planned in runs if not is_finished(planned, directory.run(planned))]
    total = len(runs)
    console.print(f"{total} {kind}, {total - len(unfinished)} already finished", highlight=False)
    with ExitStack() as closing:
        if unfinished:
            closing.enter_context(connected(unfinished[0].config.cluster))
        for number, planned in enumerate(unfinished, start=total - len(unfinished) + 1):
            start = time.monotonic()
            console.rule(f"{planned.label}, {kind.removesuffix('s')} {number} of {total}")
            run = directory.run(planned)
            _share_start(planned, run, runs, directory)
            _run_one(planned, run, console)
            console.print(f"{planned.label} took {time.monotonic() - start:.0f} s", highlight=False)


def _has_runs(directory: ComparisonDirectory) -> bool:
    own = {directory.config.name, directory.lock.name}
    return any(path.name not in own for path in directory.path.iterdir())


def _remove(directory: ComparisonDirectory, made: Sequence[Path]) -> None:
    """Remove the files of a comparison that has not begun, so that the corrected command works as typed."""
    for path in (directory.config, directory.lock):
        path.unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # another process has made something in it
            folder.rmdir()


def _run_one(planned: PlannedRun, run: RunDirectory, console: Console) -> None:
    distill(planned.config, run, resume=run.config.exists(), console=console)


def _share_start(
    planned: PlannedRun, run: RunDirectory, runs: Sequence[PlannedRun], directory: ComparisonDirectory
) -> None:
    """Copy the evaluation at step 0 from another run of the seed, if its student, prompts and sampling are the same."""
    if run.evaluation_at(0) is not None:
        return
    for other in runs:
        shares = other.seed == planned.seed and other.config.rollout == planned.config.rollout
        if not shares or other.label == planned.label:
            continue
        for line in read_json_lines(directory.run(other).evaluations):
            if line["step"] == 0:
                with run.hold(planned.config, resume=True):
                    run.seals.write(run.evaluations, json.dumps({**line, "taken_from": other.label}) + "\n")
                return


def _record(planned: PlannedRun, run: RunDirectory) -> RunRecord:
    return RunRecord(
        method=planned.method,
        seed=planned.seed,
        steps=read_json_lines(run.metrics),
        evaluations={line["step"]: EvaluationSummary.from_dict(line) for line in read_json_lines(run.evaluations)},
        uses_teacher=planned.config.objective.uses_teacher,
    )
