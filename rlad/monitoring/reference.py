"""Generator of the page `docs/reference/metrics.md`: `python -m rlad.monitoring.reference`."""

from __future__ import annotations

from collections.abc import Iterator

from rlad.monitoring.metric import Metric
from rlad.monitoring.table import METRICS

_INTRODUCTION = """\
# Metrics

All metrics for Prometheus. [Monitoring](../how-to/monitoring.md) describes the endpoints,
dashboards and alerts. Names and labels are stable.

This page is generated from `rlad/monitoring/table.py` by `make reference`.
"""
_SECTIONS = {
    "Figures of a step": lambda metric: metric.source == "ray" and metric.figure is not None,
    "State of a run": lambda metric: metric.source == "ray" and metric.figure is None,
    "Teacher gateway": lambda metric: metric.source == "gateway",
    "Schedule daemon": lambda metric: metric.source == "schedule",
}


def reference() -> str:
    """Return the page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    for title, belongs in _SECTIONS.items():
        found = [metric for metric in METRICS if belongs(metric)]
        has_figures = any(metric.figure for metric in found)
        yield f"## {title}\n"
        yield f"| metric | labels | {'figure | ' if has_figures else ''}meaning |"
        yield f"| --- | --- | {'--- | ' if has_figures else ''}--- |"
        for metric in found:
            yield _row(metric, has_figures=has_figures)
        if title != "Schedule daemon":
            yield ""


def _row(metric: Metric, *, has_figures: bool) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    figure = f"`{metric.figure}` | " if has_figures else ""
    kind = "" if metric.kind == "gauge" else f" ({metric.kind})"
    return f"| `{metric.exported_name}`{kind} | {labels} | {figure}{metric.description} |"


if __name__ == "__main__":
    print(reference(), end="")
