"""Report of a comparison: tables for the console, figures as PNG, and the self-contained page compare.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Group

from pipelines.reports.figures import COLOURS, new_figure, render_page, svg, write_png
from pipelines.run.tables import Row, fitted_table
from rlad.evaluation.comparison import ALL, Cost, Spread, accuracy_of, by_method, curves, metric_curves, p_text
from rlad.integrity.durable import write_atomically

if TYPE_CHECKING:
    from pipelines.reports.comparison_result import ComparisonResult

_MARKERS = "osD^vP*X"
_PANELS_PER_ROW = 3

# Header of each cost, and its text. A cost that the runs did not record is shown as a dash.
_COSTS: dict[str, Callable[[Cost], str]] = {
    "step\n(s)": lambda cost: _number(cost.step_s, "{:.2f}"),
    "scoring\nwait (s)": lambda cost: _number(cost.exposed_scoring_s, "{:.2f}"),
    "generated\ntokens": lambda cost: _number(cost.generated_tokens, "{:,.0f}"),
    "teacher\ntokens": lambda cost: _number(cost.teacher_tokens, "{:,.0f}"),
    "training\n(s)": lambda cost: _number(cost.training_s, "{:.0f}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Figure of the page, as an SVG element."""

    title: str
    picture: Markup


def result_table(result: ComparisonResult) -> Group:
    """Return accuracy after training by method and group: mean and standard deviation over seeds."""
    rows = [
        Row(
            name=name,
            cells=_accuracy_cells(result, name),
            style="dim" if name == "start" else None,
            ends_section=name == "start",
        )
        for name in result.accuracy
    ]
    title = f"Accuracy after training (%), by {result.evaluation.group_label}"
    return fitted_table(title, ["method", *_accuracy_headings(result)], rows, caption=_caption(result))


def cost_table(result: ComparisonResult) -> Group:
    """Return the cost of a run by method, as the mean over seeds."""
    rows = [Row(name=name, cells=[text(cost) for text in _COSTS.values()]) for name, cost in result.costs.items()]
    return fitted_table("Cost of a run, mean over seeds", ["method", *_COSTS], rows)


def write_drawings(result: ComparisonResult, folder: Path) -> list[Drawing]:
    """Draw learning curves, final accuracies and differences. Write each as PNG to `folder`, and return it as SVG."""
    groups = [] if len(result.records[0].final.groups) == 1 else list(result.records[0].final.groups)
    panels = 2 + len(groups)
    rows = -(-panels // _PANELS_PER_ROW)
    plans: dict[str, tuple[str, float, float, Callable[[Figure], None]]] = {
        "curves": (
            "Learning curves",
            11.0,
            2.9 * rows + 0.5,
            lambda figure: _draw_curves(figure, result, groups, rows),
        ),
        "accuracy": ("Accuracy after training, by run", 11.0, 3.6, lambda figure: _draw_accuracy(figure, result)),
    }
    if any(difference.low is not None for difference in result.differences):
        height = 1.3 + 0.42 * len(result.differences)
        plans["differences"] = (
            f"Differences from {result.differences[0].reference}",
            8.0,
            height,
            lambda figure: _draw_differences(figure, result),
        )
    drawings = []
    for name, (title, width, height, draw) in plans.items():
        with new_figure(width, height) as figure:
            draw(figure)
            write_png(figure, folder / f"{name}.png")
            drawings.append(Drawing(title=title, picture=svg(figure)))
    return drawings


def write_page(result: ComparisonResult, drawings: list[Drawing], path: Path) -> None:
    """Write compare.html to `path`."""
    page = render_page(
        "compare.html.j2",
        name=result.config.name,
        columns=_accuracy_headings(result),
        accuracy={name: _accuracy_cells(result, name) for name in result.accuracy},
        group_by=result.evaluation.group_label,
        caption=_caption(result),
        cost_columns=list(_COSTS),
        costs={name: [text(cost) for text in _COSTS.values()] for name, cost in result.costs.items()},
        differences=result.differences,
        area_differences=result.area_differences,
        margin=result.config.margin,
        seeds=result.config.seeds,
        methods={name: method.overrides for name, method in result.config.methods.items()},
        drawings=drawings,
        p_text=p_text,
    )
    write_atomically(path, page)


def _draw_curves(figure: Figure, result: ComparisonResult, groups: list[str], rows: int) -> None:
    label = result.evaluation.group_label
    panels = {
        "All evaluation prompts": curves(result.records, ALL),
        **{group if "," in label else f"{label} {group}": curves(result.records, group) for group in groups},
        "Training reward": metric_curves(result.records, "reward/mean"),
    }
    grid = figure.subplots(rows, min(len(panels), _PANELS_PER_ROW), squeeze=False).flatten()
    for axes, (title, by_name) in zip(grid, panels.items(), strict=False):
        _draw_lines(axes, result, by_name)
        axes.set_title(title)
        axes.set_xlabel("trained steps")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))


def _draw_lines(axes: Axes, result: ComparisonResult, by_name: Mapping[str, Mapping[int, Spread]]) -> None:
    """Draw one line per method, with a band of one standard deviation over seeds."""
    for index, name in enumerate(result.config.methods):
        curve = by_name.get(name)
        if not curve:
            continue
        steps, means = list(curve), [spread.mean for spread in curve.values()]
        colour, few = COLOURS[index % len(COLOURS)], len(curve) <= 12
        axes.plot(
            steps,
            means,
            color=colour,
            linewidth=1.6,
            marker=_marker(index) if few else None,
            markersize=4.5,
            label=name,
        )
        bands = [spread.sd or 0.0 for spread in curve.values()]
        if any(bands):
            low, high = ([mean + sign * band for mean, band in zip(means, bands, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)


def _draw_accuracy(figure: Figure, result: ComparisonResult) -> None:
    """Draw one dot per run and one bar per mean, with the methods side by side within each group."""
    axes = figure.subplots()
    methods, columns = by_method(result.records), list(next(iter(result.accuracy.values())))
    width = 0.8 / len(methods)
    for index, (name, runs) in enumerate(methods.items()):
        colour = COLOURS[index % len(COLOURS)]
        for place, column in enumerate(columns):
            at = place + (index - (len(methods) - 1) / 2) * width
            values = [accuracy_of(run.final, column) for run in runs]
            label = name if place == 0 else None
            axes.scatter(
                [at] * len(values),
                values,
                s=26,
                color=colour,
                alpha=0.8,
                edgecolors="white",
                linewidths=0.6,
                marker=_marker(index),
                label=label,
            )
            axes.hlines(
                result.accuracy[name][column].mean, at - 0.42 * width, at + 0.42 * width, color=colour, linewidth=2
            )
    for place, column in enumerate(columns):
        start = result.accuracy["start"][column].mean
        axes.hlines(
            start,
            place - 0.45,
            place + 0.45,
            color="#6b7280",
            linestyle=":",
            linewidth=1.4,
            label="start" if place == 0 else "_",
        )
    axes.set_xticks(range(len(columns)), _headings(result))
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(result.evaluation.group_label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title("Dots: runs; bars: means")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9))


def _draw_differences(figure: Figure, result: ComparisonResult) -> None:
    """Draw each method's difference from the first, in points, with its interval over seeds and the margin."""
    axes = figure.subplots()
    margin, order = 100 * result.config.margin, list(result.config.methods)
    axes.axvspan(-margin, margin, color="#6b7280", alpha=0.12, linewidth=0)
    axes.axvline(0, color="#111827", linewidth=1)
    for place, difference in enumerate(result.differences):
        if difference.low is None or difference.high is None:
            continue
        index = order.index(difference.method)
        colour, mean = COLOURS[index % len(COLOURS)], 100 * difference.difference
        reach = [[mean - 100 * difference.low], [100 * difference.high - mean]]
        axes.errorbar(
            [mean], [place], xerr=reach, color=colour, marker=_marker(index), markersize=6, capsize=4, linewidth=1.8
        )
    axes.set_yticks(range(len(result.differences)), [difference.method for difference in result.differences])
    axes.set_ylim(len(result.differences) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accuracy over all prompts (points), 95% interval over seeds; grey: equivalence margin")
    axes.set_title(f"Difference from {result.differences[0].reference}")


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _headings(result: ComparisonResult) -> list[str]:
    return ["average" if column == ALL else column for column in next(iter(result.accuracy.values()))]


def _accuracy_headings(result: ComparisonResult) -> list[str]:
    return [*_headings(result), *(["area"] if result.areas else [])]


def _accuracy_cells(result: ComparisonResult, name: str) -> list[str]:
    """Return the cells of a method: accuracy after training by group, then the area under the learning curve."""
    area = ([_percent(result.areas[name])] if name in result.areas else ["-"]) if result.areas else []
    return [*(_percent(spread) for spread in result.accuracy[name].values()), *area]


def _caption(result: ComparisonResult) -> str:
    final = result.records[0].final.overall
    seeds = len(result.config.seeds)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    area = "area: mean of the average over the trained steps; " if result.areas else ""
    temperature = f"temperature {result.evaluation.temperature:g}"
    return (
        f"mean@{final.samples} on {final.prompts} prompts at {temperature}; average: over all prompts; {area}{spread}"
    )


def _percent(spread: Spread) -> str:
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.sd is None else f"{mean} ± {100 * spread.sd:.1f}"


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)
