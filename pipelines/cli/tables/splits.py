"""Tables of `rlad simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from pipelines.run.tables import Row, fitted_table

if TYPE_CHECKING:
    from pipelines.forecast.simulated import SimulatedSplit


def print_splits(splits: Sequence[SimulatedSplit], console: Console, *, price_per_hour: float | None) -> None:
    """Print speed and bottleneck of each split, then the size and utilization of each pool.

    Splits are numbered in both tables. The fastest one is bold.

    Args:
        splits: Simulated splits, one at least.
        console: Console to print to.
        price_per_hour: Price of one GPU per hour; None to omit costs.
    """
    from pipelines.forecast.step import cost_of_step

    fastest = min(split.step_s for split in splits)
    priced = ["cost\nper step"] if price_per_hour is not None else []
    headers = ["split", "GPUs", "step\n(s)", "x lower\nbound", "tokens/s", *priced, "lost\nworkers", "bounded by"]
    rows = []
    for number, split in enumerate(splits, 1):
        cost = (
            []
            if price_per_hour is None
            else [f"{cost_of_step(split.step_s, split.devices, price_per_hour=price_per_hour):,.2f}"]
        )
        cells = [
            f"{split.devices:g}",
            f"{split.step_s:.1f}",
            f"{split.run.makespan_over_bound:.2f}",
            f"{split.tokens_per_s:,.0f}",
            *cost,
            str(split.run.lost_workers),
            split.bound_by,
        ]
        is_fastest = split.step_s == fastest and len(splits) > 1
        rows.append(Row(name=str(number), cells=cells, style="bold" if is_fastest else None))
    console.print(fitted_table(f"Simulation of {len(splits[0].run.steps)} steps", headers, rows))
    _print_pools(splits, console)


def _print_pools(splits: Sequence[SimulatedSplit], console: Console) -> None:
    """Print one row per pool and one column per split."""
    sizes = {
        "rollout workers": [str(split.sizes.rollout) for split in splits],
        **{
            f"{pool} replicas": [str(split.sizes.scorers[pool]) for split in splits] for pool in splits[0].sizes.scorers
        },
        "learner ranks": [str(split.sizes.learner) for split in splits],
    }
    busy = {f"{pool} busy": [f"{split.run.busy[pool]:.0%}" for split in splits] for pool in splits[0].run.busy}
    rows = [
        *(Row(name=name, cells=cells, ends_section=name == "learner ranks") for name, cells in sizes.items()),
        *(Row(name=name, cells=cells) for name, cells in busy.items()),
    ]
    headers = ["split", *(str(number) for number in range(1, len(splits) + 1))]
    console.print(fitted_table("Size and busy share of each pool", headers, rows))
