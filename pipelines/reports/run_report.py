"""Report of a run: the self-contained page report.html, with plots embedded as SVG."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from pipelines.reports.figures import COLOURS, new_figure, render_page, svg
from pipelines.run.bottleneck import bottleneck_of_run, pool_sizes
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.errors import RunDirectoryError
from rlad.integrity.durable import write_atomically
from rlad.ledger import Ledger
from rlad.monitoring.cost import shown

_STAGES = ("generate", "score", "learn", "weights")


def write_report(run: RunDirectory) -> None:
    """Write the report of a finished or running run from the files in its directory.

    Raises:
        RunDirectoryError: The directory holds no run, or the run has recorded neither steps nor evaluations.
        CorruptFileError: A record of the run is damaged.
    """
    config = run.read_config()
    steps, evaluations = read_json_lines(run.metrics), read_json_lines(run.evaluations)
    if not steps and not evaluations:
        raise RunDirectoryError(f"nothing to report yet: {run.path} has no steps and no evaluations")
    ledger = Ledger(run.ledger, read_only=True)
    try:
        counts = ledger.counts().as_dict()
    finally:
        ledger.close()
    page = render_page(
        "report.html.j2",
        name=config.name,
        objective={"name": config.objective.name, **config.objective.shown_settings},
        config_text=run.config.read_text(),
        steps=len(steps),
        total_steps=config.training.steps,
        elapsed_s=steps[-1]["time"] - steps[0]["time"] if len(steps) > 1 else 0.0,
        evaluations=evaluations,
        group_by=config.evaluation.group_label,
        plots=_plots(steps, evaluations, config.evaluation.group_label),
        shares=_stage_shares(steps),
        bottleneck=bottleneck_of_run(steps, pool_sizes(config)),
        idle=_idle_shares(steps),
        counts=counts,
        cost=read_cost(run),
        shown=shown,
    )
    write_atomically(run.report, page)


def _plots(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], group_by: str) -> list[Markup]:
    plots = []
    if evaluations:
        plots.append(_draw("Accuracy on held-out prompts", lambda axes: _accuracy(axes, evaluations, group_by)))
    if not steps:
        return plots
    if "reward/mean" in steps[0]:
        return plots + _on_policy_plots(steps)
    return plots + _offline_plots(steps)


def _on_policy_plots(steps: list[dict[str, Any]]) -> list[Markup]:
    return [
        _line_plot("Training reward", steps, {"reward/mean": "mean reward"}, smooth=True),
        _stage_plot(steps),
        _line_plot("Response length (tokens)", steps, {"rollout/response_tokens_mean": "mean"}),
        _line_plot("Mean |log ratio| per token (nats)", steps, _DISTANCES),
        _line_plot("Clipped tokens (share)", steps, _CLIPPED),
        _line_plot("Gradient norm", steps, _GRADIENT_NORM),
        _line_plot("|Δ log-probability| between engine and learner", steps, _GAP, log=True),
    ]


def _offline_plots(steps: list[dict[str, Any]]) -> list[Markup]:
    """Return the plots of an offline run. Its responses come from the teacher, so it has neither reward nor ratios."""
    return [
        _line_plot("Loss", steps, {"learner/loss": "loss"}, smooth=True),
        _stage_plot(steps),
        _line_plot("Trace length (tokens)", steps, {"traces/response_tokens_mean": "mean"}),
        _line_plot("Gradient norm", steps, _GRADIENT_NORM),
    ]


# Metrics of a plot, each with the label of its line.
_DISTANCES = {
    "objective/log_ratio_teacher_abs_mean": "student and teacher",
    "objective/log_ratio_behaviour_abs_mean": "student and sampler",
}
_CLIPPED = {"objective/clip_fraction_positive": "advantage > 0", "objective/clip_fraction_negative": "advantage < 0"}
_GAP = {"learner/logprob_gap_max": "maximum", "learner/logprob_gap_mean": "mean"}
_GRADIENT_NORM = {"learner/gradient_norm": "before clipping"}


def _line_plot(
    title: str, steps: list[dict[str, Any]], names: dict[str, str], *, smooth: bool = False, log: bool = False
) -> Markup:
    return _draw(title, lambda axes: _lines(axes, steps, names, smooth=smooth, log=log))


def _stage_plot(steps: list[dict[str, Any]]) -> Markup:
    return _draw("Time per step, by stage (s)", lambda axes: _stack(axes, steps))


def _draw(title: str, plot: Callable[[Axes], None]) -> Markup:
    with new_figure(5.4, 3.1) as figure:
        axes = figure.add_subplot()
        plot(axes)
        axes.set_title(title)
        axes.set_xlabel("trained steps")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        return svg(figure)


def _accuracy(axes: Axes, evaluations: list[dict[str, Any]], group_by: str) -> None:
    at = [line["step"] for line in evaluations]
    overall = [line["overall"] for line in evaluations]
    axes.plot(at, [row["mean"] for row in overall], color="black", linewidth=2, label="all", marker="o", markersize=3)
    axes.fill_between(
        at, [row["low"] for row in overall], [row["high"] for row in overall], color="black", alpha=0.1, linewidth=0
    )
    groups = evaluations[0]["groups"]
    for group in groups if len(groups) > 1 else []:
        axes.plot(
            at,
            [line["groups"][group]["mean"] for line in evaluations],
            linewidth=1.2,
            label=group if "," in group_by else f"{group_by} {group}",
        )
    axes.set_ylim(0, 1)


def _lines(
    axes: Axes, steps: list[dict[str, Any]], names: dict[str, str], *, smooth: bool = False, log: bool = False
) -> None:
    for name, label in names.items():
        points = [(line["step"], line[name]) for line in steps if name in line]
        if not points:
            continue
        at, values = zip(*points, strict=True)
        axes.plot(at, values, label=label, alpha=0.35 if smooth else 1.0, linewidth=1.2)
        if smooth:
            axes.plot(at, _smoothed(values), color=COLOURS[0], linewidth=2, label="moving average")
    if log:
        axes.set_yscale("log")


def _stack(axes: Axes, steps: list[dict[str, Any]]) -> None:
    axes.stackplot(
        [line["step"] for line in steps],
        [[line[f"time/{stage}_s"] for line in steps] for stage in _STAGES],
        labels=_STAGES,
        alpha=0.8,
    )


def _smoothed(values: tuple[float, ...], window: int = 7) -> list[float]:
    return [sum(values[max(0, end - window) : end]) / (end - max(0, end - window)) for end in range(1, len(values) + 1)]


def _idle_shares(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median idle share of each pool, over the steps that recorded it."""
    pools = {name for line in steps for name in line if name.startswith("idle/")}
    return {
        name.removeprefix("idle/"): statistics.median(line[name] for line in steps if name in line)
        for name in sorted(pools)
    }


def _stage_shares(steps: list[dict[str, Any]]) -> dict[str, float]:
    total = sum(line["time/step_s"] for line in steps)
    return {stage: sum(line[f"time/{stage}_s"] for line in steps) / total for stage in _STAGES} if total else {}
