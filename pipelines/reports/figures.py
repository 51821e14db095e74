"""What every page of ours shares: the look of its drawings, and drawings and style put into one self-contained file."""

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
    """An empty figure of so many inches. Draw and save inside the block, which is where the style holds."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> Markup:
    """The figure as an element of an HTML page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return Markup(re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL))


def write_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=160, facecolor="white")


def render_page(template: str, **values: Any) -> str:
    """A page from one of our templates. A name that the template uses and is not given is an error, not an empty place."""
    environment = Environment(
        loader=PackageLoader("pipelines"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
