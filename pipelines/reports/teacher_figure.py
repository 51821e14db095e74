"""Picture of a teacher check: preferences, log ratios, overlap and vetoes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pipelines.reports.figures import COLOURS, new_figure, write_png
from rlad.evaluation.teacher_check import HISTOGRAM_EDGES, AnchorSettings, KindStatistics, TeacherCheck

_BETTER: dict[str, Any] = {"color": COLOURS[2], "label": "better responses"}
_WORSE: dict[str, Any] = {"color": COLOURS[4], "label": "worse responses"}


def write_teacher_figure(check: TeacherCheck, anchor: AnchorSettings, path: Path, *, title: str) -> None:
    """Write the picture of a check as PNG.

    Args:
        check: Result of the check.
        anchor: TRRD settings, whose veto thresholds are drawn.
        path: File to write.
        title: Title of the picture.
    """
    rows: Mapping[str, KindStatistics] = {**check.kinds, "all": check.overall}
    with new_figure(9.6, 6.6) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        [[agreement, histogram], [positions, shares]] = figure.subplots(2, 2)
        _draw_agreement(agreement, rows)
        _draw_histogram(histogram, check, anchor)
        _draw_positions(positions, check)
        _draw_shares(shares, rows)
        write_png(figure, path)


def _draw_agreement(axes: Axes, rows: Mapping[str, KindStatistics]) -> None:
    axes.set_title("Pairs that the teacher orders as the reward")
    found = [(at, each.agreement) for at, each in enumerate(rows.values()) if each.agreement is not None]
    for at, interval in found:
        axes.plot([at, at], [interval.low, interval.high], color=COLOURS[0], linewidth=2)
        axes.plot(at, interval.mean, "o", color=COLOURS[0])
    axes.axhline(0.5, color="black", linewidth=1, linestyle="--")
    axes.set_ylim(-0.02, 1.02)
    _label_rows(axes, rows)
    axes.set_ylabel("share (95% interval)")


def _draw_histogram(axes: Axes, check: TeacherCheck, anchor: AnchorSettings) -> None:
    axes.set_title("Log ratio of a token")
    for shares, style in ((check.histogram_better, _BETTER), (check.histogram_worse, _WORSE)):
        axes.stairs(shares, HISTOGRAM_EDGES, linewidth=1.5, **style)
    for at, threshold in zip(("A < 0 vetoed", "A > 0 vetoed"), anchor.veto_thresholds, strict=True):
        if threshold is not None:
            axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
            axes.annotate(at, (threshold, 0.97), xycoords=("data", "axes fraction"), ha=_side(threshold), fontsize=7)
    if any((*check.histogram_better, *check.histogram_worse)):
        axes.set_yscale("log")
    axes.set_xlabel("log pi_old - log pi_T (nats; the outer bins hold everything beyond)")
    axes.set_ylabel("share of tokens")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))


def _side(threshold: float) -> str:
    return "right" if threshold < 0 else "left"


def _draw_positions(axes: Axes, check: TeacherCheck) -> None:
    axes.set_title("Mean log ratio by position in the response")
    for name, style in (("better", _BETTER), ("worse", _WORSE)):
        points = [
            ((each.start + each.end - 1) / 2, value)
            for each in check.positions
            if (value := getattr(each, name)) is not None
        ]
        axes.plot([at for at, _ in points], [value for _, value in points], marker="o", markersize=3, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("token")
    axes.set_ylabel("log pi_old - log pi_T (nats)")
    axes.legend()


def _draw_shares(axes: Axes, rows: Mapping[str, KindStatistics]) -> None:
    axes.set_title("Overlap, disagreement and vetoes")
    columns: dict[str, list[float | None]] = {
        "overlap of likely tokens": [each.overlap for each in rows.values()],
        "tokens pulled against A": [each.token_disagreement for each in rows.values()],
        "vetoed where A > 0": [each.veto_positive for each in rows.values()],
        "vetoed where A < 0": [each.veto_negative for each in rows.values()],
    }
    width = 0.8 / len(columns)
    for number, (label, values) in enumerate(columns.items()):
        places = [at - 0.4 + (number + 0.5) * width for at in range(len(rows))]
        axes.bar(places, [value or 0.0 for value in values], width=width, label=label)
    axes.set_ylim(0, 1)
    _label_rows(axes, rows)
    axes.legend(fontsize=7)


def _label_rows(axes: Axes, rows: Mapping[str, Any]) -> None:
    axes.set_xticks(range(len(rows)), list(rows), rotation=0 if len(rows) <= 5 else 45)
    axes.set_xlim(-0.6, len(rows) - 0.4)
