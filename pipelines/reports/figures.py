"""Figure style and page rendering, shared by all HTML reports."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#db2777")
_STYLE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "legend.frameon": False,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of `width` by `height` inches. Draw and save inside the block: the style ends with it."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> Markup:
    """Return the figure as an SVG element for an HTML page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return Markup(re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL))


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, on white, at 160 dots per inch."""
    figure.savefig(path, format="png", dpi=160, facecolor="white")


def render_page(template: str, **values: Any) -> str:
    """Render a template of `pipelines/templates`. A missing value raises an error instead of leaving a gap."""
    environment = Environment(
        loader=PackageLoader("pipelines"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
