"""Console output of a run: a live display on a terminal, one line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pipelines.run.bottleneck import bottleneck
from pipelines.run.tables import Row, fitted_table
from rlad.evaluation.accuracy import EvaluationSummary

_WITHOUT_TOTAL = (SpinnerColumn, TextColumn, TimeElapsedColumn)


class _LiveProgress(Progress):
    """Live display that fits 80 columns.

    Details are on indented lines below the bar. A task without a total has no bar, so that its name has room.
    """

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            if not task.visible:
                continue
            if task.total is None:
                grid = Table.grid(padding=(0, 1))
                grid.add_row(*(column(task) for column in self.columns if isinstance(column, _WITHOUT_TOTAL)))
                yield grid
            else:
                yield self.make_tasks_table([task])
            if task.fields["detail"]:
                yield Text("\n".join(f"  {line}" for line in task.fields["detail"].splitlines()))


class RunProgress:
    """Progress of one run on a console."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._live = _LiveProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._steps = self._live.add_task("training", total=total_steps, detail="", visible=False)

    def __enter__(self) -> RunProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[PhaseProgress]:
        """Show a phase of more than two seconds: a spinner or bar while it lasts, then a line with its duration."""
        start = time.monotonic()
        task = self._live.add_task(name, total=total, detail="")
        if not self._console.is_terminal:
            self._console.print(f"{name} ...")
        try:
            yield PhaseProgress(self._console, self._live, task)
        finally:
            self._live.remove_task(task)
        self._console.print(f"[green]✓[/] {name} [dim]({time.monotonic() - start:.0f} s)[/]")

    def step(self, step: int, metrics: Mapping[str, float], accuracy: float | None, workers: Mapping[str, int]) -> None:
        """Show that `step` steps are trained.

        Args:
            metrics: Metrics of the last step.
            accuracy: Accuracy of the last evaluation, 0 to 1; None before the first.
            workers: Workers of each pool.
        """
        detail = "\n".join(step_lines(metrics, accuracy, workers))
        self._live.update(self._steps, completed=step, detail=detail, visible=True)
        if not self._console.is_terminal:
            line = step_line(metrics, accuracy, workers)
            self._console.print(f"step {step}/{self._total}  {line}", highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Show a warning above the progress."""
        self._console.print(Text.assemble(("warning: ", "bold yellow"), message), soft_wrap=True, highlight=False)


class PhaseProgress:
    """Handle that advances the bar of a phase."""

    def __init__(self, console: Console, live: Progress, task: TaskID) -> None:
        self._console, self._live, self._task = console, live, task

    def advance(self, detail: str = "") -> None:
        """Count one more item as done.

        Args:
            detail: Text below the bar. Without a terminal, it is printed after each tenth of the phase.
        """
        state = self._live.tasks[self._live.task_ids.index(self._task)]
        before = state.completed
        self._live.update(self._task, advance=1, detail=detail)
        if (
            detail
            and not self._console.is_terminal
            and state.total
            and 10 * (before + 1) // state.total > 10 * before // state.total
        ):
            self._console.print(
                f"{state.description}  {before + 1:.0f}/{state.total:.0f}  {detail}", highlight=False, soft_wrap=True
            )


def step_line(metrics: Mapping[str, float], accuracy: float | None, workers: Mapping[str, int]) -> str:
    """Return `step_lines` as one line, for logs."""
    return "  ".join(step_lines(metrics, accuracy, workers))


def step_lines(metrics: Mapping[str, float], accuracy: float | None, workers: Mapping[str, int]) -> list[str]:
    """Return three lines on a step: results and speed, duration by stage, and the bottleneck.

    Args:
        metrics: Metrics of the step. Offline runs have a loss instead of a reward.
        accuracy: Accuracy of the last evaluation, 0 to 1; None before the first.
        workers: Workers of each pool.
    """
    results = (
        [f"reward {metrics['reward/mean']:.2f}"]
        if "reward/mean" in metrics
        else [f"loss {metrics.get('learner/loss', float('nan')):.3f}"]
    )
    if accuracy is not None:
        results.append(f"accuracy {accuracy:.1%}")
    source = "rollout" if "rollout/tokens_per_s" in metrics else "traces"
    results.append(f"{metrics[f'{source}/tokens_per_s']:,.0f} tok/s")
    return [
        "  ".join(results),
        f"{metrics['time/step_s']:.1f} s = {where_time_goes(metrics)}",
        bottleneck(metrics, workers).sentence(),
    ]


def where_time_goes(metrics: Mapping[str, float]) -> str:
    """Return the exposed share of each stage. Time that overlaps another stage is not counted twice."""
    step = max(metrics["time/step_s"], 1e-9)
    stages = {name: metrics[f"time/{name}_s"] / step for name in ("generate", "score", "learn", "weights")}
    return " ".join(f"{name} {share:.0%}" for name, share in stages.items())


def accuracy_table(title: str, columns: dict[str, EvaluationSummary], *, group_by: str) -> Group:
    """Return accuracy by group, with one column per evaluation.

    Two or more evaluations add the change from the first to the last, in percentage points.
    """
    first, last = next(iter(columns.values())), list(columns.values())[-1]
    headers = [group_by, "prompts", *columns, *(["change"] if len(columns) > 1 else [])]
    by_group = {group: [summary.groups[group] for summary in columns.values()] for group in first.groups}
    rows = []
    for group, found in [*by_group.items(), ("all", [summary.overall for summary in columns.values()])]:
        cells = [str(found[0].prompts), *(_with_interval(row.mean, row.low, row.high) for row in found)]
        if len(columns) > 1:
            cells.append(f"{100 * (found[-1].mean - found[0].mean):+.1f}")
        rows.append((group, cells))
    caption = f"mean@{last.overall.samples}, 95% confidence interval"
    return fitted_table(title, headers, _with_total(rows), caption=caption)


def evaluation_table(title: str, summary: EvaluationSummary, *, group_by: str) -> Group:
    """Return one evaluation in full: mean@k, maj@k if responses have a vote, pass@k for several k, and lengths."""
    samples, several = summary.overall.samples, [k for k in summary.overall.pass_at if k > 1]
    with_majority = samples > 1 and any(row.majority for row in (summary.overall, *summary.groups.values()))
    majority = [f"maj@{samples}"] if with_majority else []
    passed = [f"pass@{k}" for k in several]
    failed = ["failed"] if summary.overall.failed else []
    headers = [group_by, "prompts", f"mean@{samples}", *majority, *passed, "tokens", "truncated", *failed]
    rows = []
    for group, row in [*summary.groups.items(), ("all", summary.overall)]:
        cells = [str(row.prompts), _with_interval(row.mean, row.low, row.high)]
        if with_majority:
            cells.append(
                _with_interval(row.majority.mean, row.majority.low, row.majority.high) if row.majority else "-"
            )
        cells += [f"{row.pass_at[k].mean:.1%}" for k in several]
        counts = [str(row.failed)] if failed else []
        rows.append((group, [*cells, f"{row.response_tokens:,.0f}", f"{row.truncated:.1%}", *counts]))
    caption = "In parentheses: 95% confidence interval over prompts"
    if failed:
        caption += ". Failed: responses without a verdict, in no mean"
    return fitted_table(title, headers, _with_total(rows), caption=caption)


def _with_total(rows: list[tuple[str, list[str]]]) -> list[Row]:
    """Return table rows; the last one is the total, in bold and after a line."""
    *groups, (name, cells) = rows
    return [
        *(Row(name=group, cells=found, ends_section=at == len(groups)) for at, (group, found) in enumerate(groups, 1)),
        Row(name=name, cells=cells, style="bold"),
    ]


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.1%} [dim]({low:.0%}-{high:.0%})[/]"
