"""What a person watches while a run goes: a live line on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
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

from pipelines.run.bottleneck import bottleneck
from rlad.evaluation.accuracy import EvaluationSummary


class RunProgress:
    """Progress of one run on a console."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
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
        """Something that takes more than two seconds: a spinner or bar while it lasts, a line with its time when it is done."""
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
        """`step` trained steps are done, by pools of so many workers."""
        detail = step_line(metrics, accuracy, workers)
        self._live.update(self._steps, completed=step, detail=detail, visible=True)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._total}  {detail}", highlight=False, soft_wrap=True)


class PhaseProgress:
    """Handle of a phase that counts."""

    def __init__(self, console: Console, live: Progress, task: TaskID) -> None:
        self._console, self._live, self._task = console, live, task

    def advance(self, detail: str = "") -> None:
        """Another one is done. `detail` stands beside the bar; where nobody watches live, in a line each tenth of the phase."""
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
    """One line on a step: reward (of given traces: the loss), accuracy, speed, where its time went, and what bounds it.

    Args:
        workers: of each pool.
    """
    parts = (
        [f"reward {metrics['reward/mean']:.2f}"]
        if "reward/mean" in metrics
        else [f"loss {metrics.get('learner/loss', float('nan')):.3f}"]
    )
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.1%}")
    speed = "rollout" if "rollout/tokens_per_s" in metrics else "traces"
    parts.append(f"{metrics[f'{speed}/tokens_per_s']:,.0f} tok/s")
    parts.append(f"{metrics['time/step_s']:.1f} s = {where_time_goes(metrics)}")
    parts.append(bottleneck(metrics, workers).sentence())
    return "  ".join(parts)


def where_time_goes(metrics: Mapping[str, float]) -> str:
    """The exposed share of each stage; what overlaps another stage is not counted twice."""
    step = max(metrics["time/step_s"], 1e-9)
    stages = {name: metrics[f"time/{name}_s"] / step for name in ("generate", "score", "learn", "weights")}
    return " ".join(f"{name} {share:.0%}" for name, share in stages.items())


def accuracy_table(title: str, columns: dict[str, EvaluationSummary], *, group_by: str) -> Table:
    """Accuracy by group, a column an evaluation, and with two or more the difference of the last to the first in points."""
    table = Table(title=title, title_justify="left")
    table.add_column(group_by)
    table.add_column("prompts", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    first, last = next(iter(columns.values())), list(columns.values())[-1]
    if len(columns) > 1:
        table.add_column("change", justify="right")
    for group in [*first.groups, None]:
        rows = [summary.groups[group] if group is not None else summary.overall for summary in columns.values()]
        cells = [_with_interval(row.mean, row.low, row.high) for row in rows]
        if len(columns) > 1:
            cells.append(f"{100 * (rows[-1].mean - rows[0].mean):+.1f}")
        if group is None:
            table.add_section()
        table.add_row(
            group if group is not None else "all", str(rows[0].prompts), *cells, style="bold" if group is None else None
        )
    table.caption = f"mean@{last.overall.samples}, 95% confidence interval"
    return table


def evaluation_table(title: str, summary: EvaluationSummary, *, group_by: str) -> Table:
    """One evaluation in full: mean@k, maj@k where there is a vote, pass@k for several k, lengths."""
    table = Table(title=title, title_justify="left")
    samples, several = summary.overall.samples, [k for k in summary.overall.pass_at if k > 1]
    with_majority = samples > 1 and any(row.majority for row in (summary.overall, *summary.groups.values()))
    table.add_column(group_by)
    majority = [f"maj@{samples}"] if with_majority else []
    for name in ("prompts", f"mean@{samples}", *majority, *(f"pass@{k}" for k in several), "tokens", "truncated"):
        table.add_column(name, justify="right")
    for group, row in [*summary.groups.items(), ("all", summary.overall)]:
        if row is summary.overall:
            table.add_section()
        cells = [_with_interval(row.mean, row.low, row.high)]
        if with_majority:
            cells.append(
                _with_interval(row.majority.mean, row.majority.low, row.majority.high) if row.majority else "-"
            )
        cells += [f"{row.pass_at[k].mean:.1%}" for k in several]
        style = "bold" if row is summary.overall else None
        table.add_row(
            group, str(row.prompts), *cells, f"{row.response_tokens:,.0f}", f"{row.truncated:.1%}", style=style
        )
    table.caption = "in brackets the 95% confidence interval over prompts"
    return table


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.1%} [dim]({low:.0%}-{high:.0%})[/]"
