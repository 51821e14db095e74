"""Charts of a run's page: their titles, metrics and units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart over the trained steps.

    Attributes:
        title: Title with the unit.
        lines: Name of each metric with the label of its line.
    """

    title: str
    lines: Sequence[tuple[str, str]]


_STAGES = (
    ("time/generate_s", "generate"),
    ("time/score_s", "score"),
    ("time/learn_s", "learn"),
    ("time/weights_s", "weights"),
)

CHARTS = (
    Chart(title="Mean reward", lines=[("reward/mean", "mean reward")]),
    Chart(title="Loss", lines=[("learner/loss", "loss")]),
    Chart(
        title="Response length (tokens)",
        lines=[("rollout/response_tokens_mean", "mean"), ("rollout/response_tokens_max", "longest")],
    ),
    Chart(title="Truncated responses (share)", lines=[("rollout/truncated_fraction", "truncated")]),
    Chart(title="Time per step by stage (s)", lines=_STAGES),
    Chart(
        title="Mean |log-ratio| per token (nats)",
        lines=[
            ("objective/log_ratio_teacher_abs_mean", "student and teacher"),
            ("objective/log_ratio_behaviour_abs_mean", "student and sampler"),
        ],
    ),
    Chart(
        title="Clipped tokens (share)",
        lines=[
            ("objective/clip_fraction_positive", "advantage > 0"),
            ("objective/clip_fraction_negative", "advantage < 0"),
        ],
    ),
    Chart(title="Gradient norm before clipping", lines=[("learner/gradient_norm", "gradient norm")]),
    Chart(
        title="Reserved hours since the start",
        lines=[("cost/gpu_hours", "GPU-hours"), ("cost/cpu_hours", "CPU-hours")],
    ),
    Chart(title="Sampled tokens per second", lines=[("rollout/tokens_per_s", "tokens/s")]),
)
"""Charts in the order of the page. A run shows those of which it recorded a metric."""

COMPARED = "reward/mean"
"""Metric that a comparison of runs starts with."""


def charts_of(names: Sequence[str]) -> list[Chart]:
    """Return the charts of a run that recorded these metrics, and one of the idle shares of its pools."""
    recorded = set(names)
    shown = [
        Chart(title=chart.title, lines=[line for line in chart.lines if line[0] in recorded])
        for chart in CHARTS
        if recorded & {name for name, _ in chart.lines}
    ]
    idle = [(name, name.removeprefix("idle/")) for name in names if name.startswith("idle/")]
    return [*shown, *([Chart(title="Idle share by pool", lines=idle)] if idle else [])]
