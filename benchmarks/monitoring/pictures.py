"""Pictures of the dashboards: the queries of each panel, answered by Prometheus and drawn by matplotlib."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.reports.figures import new_figure, write_png

_COLUMNS, _WIDTH, _ROW_HEIGHT = 3, 12.0, 2.3
_MAX_LEGEND = 8
_COLORS = 64  # a third of the size of a picture with all colours, and no visible difference
Series = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Panel of a dashboard.

    Attributes:
        title: Title.
        queries: Queries, with the pattern of all runs in place of the dashboard's variable.
        legends: Template of the names of each query's series.
    """

    title: str
    queries: tuple[str, ...]
    legends: tuple[str, ...]


def panels(dashboard: Path) -> list[Panel]:
    """Return the panels of a dashboard's file, in order."""
    found = json.loads(dashboard.read_text())["panels"]
    return [
        Panel(
            title=each["title"],
            queries=tuple(target["expr"].replace("$run", ".*") for target in each["targets"]),
            legends=tuple(target["legendFormat"] for target in each["targets"]),
        )
        for each in found
    ]


def draw(dashboard: Path, answer: Callable[[str], Series], path: Path, *, start: float) -> None:
    """Draw a dashboard as a PNG.

    Args:
        dashboard: File of the dashboard.
        answer: Function that answers a query with its series.
        path: Picture.
        start: Time at the left edge, seconds since the epoch.
    """
    shown = panels(dashboard)
    rows = math.ceil(len(shown) / _COLUMNS)
    with new_figure(_WIDTH, _ROW_HEIGHT * rows) as figure:
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes, panel in zip(grid.flat, shown, strict=False):
            for query, legend in zip(panel.queries, panel.legends, strict=True):
                for series in answer(query):
                    points = [(float(at) - start, float(value)) for at, value in series["values"]]
                    axes.plot(*zip(*points, strict=True), label=_name(legend, series["metric"]), linewidth=1.2)
            axes.set_title(panel.title)
            if not axes.lines:
                axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)
            elif 1 < len(axes.lines) <= _MAX_LEGEND:
                axes.legend(fontsize=6)
        for axes in grid.flat[len(shown) :]:
            axes.axis("off")
        for axes in grid[-1]:
            axes.set_xlabel("seconds")
        write_png(figure, path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    """Fill the template of a name, without the name of the run: these pictures show one."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend.replace("{{run}}", "")).strip() or "-"
