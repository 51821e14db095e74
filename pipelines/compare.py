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
from rlad.config.comparison import Comparison, PlannedRun
from rlad.errors import RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.comparison import RunRecord, accuracy_spreads, areas, costs, differences
from rlad.integrity.durable import write_atomically


class ComparisonDirectory:
    """Paths of a comparison. Each run has a subdirectory `METHOD-seedN`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()

    config = property(lambda self: self.path / "compare.yaml")
    figures = property(lambda self: self.path / "compare.json")
    page = property(lambda self: self.path / "compare.html")
    lock = property(lambda self: self.path / ".lock")

    def run(self, planned: PlannedRun) -> RunDirectory:
        """Return the directory of a run."""
        return RunDirectory(self.path / planned.name)


def compare(
    comparison: Comparison, directory: ComparisonDirectory, *, resume: bool, console: Console
) -> ComparisonResult:
    """Train the unfinished runs, then write compare.json, compare.html and the figures, and print the tables.

    Raises:
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
        write_atomically(directory.config, yaml.safe_dump(comparison.config.model_dump(mode="json"), sort_keys=False))
        try:
            _run_all(comparison, directory, console)
        except BaseException:
            if not _has_runs(directory):
                _remove(directory, made)
            raise
        result = analyse(comparison, directory)
        write_atomically(directory.figures, json.dumps(result.as_dict(), indent=2) + "\n")
        drawings = write_drawings(result, directory.path)
        write_page(result, drawings, directory.page)
    console.print(result_table(result))
    console.print(cost_table(result))
    for difference in [*result.differences, *result.area_differences]:
        console.print(difference.sentence(), highlight=False)
    console.print(f"report: {directory.page}", soft_wrap=True, highlight=False)
    return result


def analyse(comparison: Comparison, directory: ComparisonDirectory) -> ComparisonResult:
    """Compare the finished runs from their recorded metrics.

    Raises:
        ContractError: The evaluations of two runs cannot be paired.
    """
    records = [_record(planned, directory.run(planned)) for planned in comparison.runs]
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


def _run_all(comparison: Comparison, directory: ComparisonDirectory, console: Console) -> None:
    unfinished = [planned for planned in comparison.runs if not is_finished(planned, directory.run(planned))]
    total = len(comparison.runs)
    console.print(f"{total} runs, {total - len(unfinished)} already finished", highlight=False)
    with ExitStack() as closing:
        if unfinished:
            closing.enter_context(connected(unfinished[0].config.cluster))
        for number, planned in enumerate(unfinished, start=total - len(unfinished) + 1):
            start = time.monotonic()
            console.rule(f"{planned.name}, run {number} of {total}")
            run = directory.run(planned)
            _share_start(planned, run, comparison, directory)
            _run_one(planned, run, console)
            console.print(f"{planned.name} took {time.monotonic() - start:.0f} s", highlight=False)


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
    planned: PlannedRun, run: RunDirectory, comparison: Comparison, directory: ComparisonDirectory
) -> None:
    """Copy the evaluation at step 0 from another run of the seed, if its student, prompts and sampling are the same."""
    if run.evaluation_at(0) is not None:
        return
    for other in comparison.runs:
        shares = other.seed == planned.seed and other.config.rollout == planned.config.rollout
        if not shares or other.method == planned.method:
            continue
        for line in read_json_lines(directory.run(other).evaluations):
            if line["step"] == 0:
                with run.hold(planned.config, resume=True):
                    run.seals.write(run.evaluations, json.dumps({**line, "taken_from": other.name}) + "\n")
                return


def _record(planned: PlannedRun, run: RunDirectory) -> RunRecord:
    return RunRecord(
        method=planned.method,
        seed=planned.seed,
        steps=read_json_lines(run.metrics),
        evaluations={line["step"]: EvaluationSummary.from_dict(line) for line in read_json_lines(run.evaluations)},
        uses_teacher=planned.config.objective.uses_teacher,
    )
