"""A metric for Prometheus, and its relation to the figures of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

RAY_PREFIX = "ray_"
"""Prefix that Ray's metrics endpoint adds to the name of every metric of an application."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric. Names and labels are stable: dashboards and alerts of users depend on them.

    Attributes:
        name: Name in the code. Ray's endpoint adds `RAY_PREFIX`, see `exported_name`.
        kind: Type. The name of a counter ends in `_total`.
        labels: Names of the labels.
        description: Meaning, with the unit.
        source: Endpoint that has it: `ray` that of Ray on the nodes, `gateway` and `schedule` those of these services.
        figure: Name in metrics.jsonl or evaluations, where `{label}` stands for the value of a label; None for a metric
            that is no figure of a step.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    description: str
    source: Literal["ray", "gateway", "schedule"] = "ray"
    figure: str | None = None

    @property
    def exported_name(self) -> str:
        """Name at the endpoint, which queries use."""
        return RAY_PREFIX + self.name if self.source == "ray" else self.name

    def labels_of(self, figure: str) -> dict[str, str] | None:
        """Return the labels that the name of a figure holds; None if it is not a figure of this metric."""
        if self.figure is None:
            return None
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(self.figure))
        match = re.fullmatch(pattern, figure)
        return None if match is None else match.groupdict()
