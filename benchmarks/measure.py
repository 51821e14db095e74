"""Shared parts of the benchmarks: paired measurements, ratios with targets, provenance, and output.

The speed of a machine drifts by more than most differences that matter. Two variants are therefore run alternately,
and a ratio is the median of the ratios of adjacent runs. Ratios are comparable between machines; seconds are not.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

JsonPath = Annotated[
    Path | None, typer.Option("--json", help="Also write the measurements to this JSON file.", show_default=False)
]
Pairs = Annotated[int, typer.Option(min=1, help="Number of pairs of runs to measure.")]

_PACKAGES = ("torch", "transformers", "ray", "vllm", "deepspeed", "safetensors", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Seconds of two variants that were run alternately.

    Attributes:
        first_s: seconds of the first variant.
        second_s: seconds of the second variant; entry i was measured directly before or after entry i of `first_s`.
    """

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of first / second over the pairs."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        return [first / second for first, second in zip(self.first_s, self.second_s, strict=True)]

    @property
    def first_median_s(self) -> float:
        return statistics.median(self.first_s)

    @property
    def second_median_s(self) -> float:
        return statistics.median(self.second_s)

    def figures(self, first: str, second: str) -> dict[str, Any]:
        """Return medians and minima by name, and the ratios of all pairs; their spread shows the median's precision."""
        return {
            f"{first}_s": self.first_median_s,
            f"{second}_s": self.second_median_s,
            f"{first}_best_s": min(self.first_s),
            f"{second}_best_s": min(self.second_s),
            f"{first}_over_{second}_pairs": [round(ratio, 4) for ratio in sorted(self.ratios)],
        }


def seconds(action: Callable[[], object]) -> float:
    """Return the wall-clock seconds of an action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return the CPU seconds that an action takes in this process.

    Other load on the machine affects them less than wall-clock seconds. Only for actions that run on one thread of this
    process and do not wait.
    """
    started = time.process_time()
    action()
    return time.process_time() - started


def measure_pairs(
    first: Callable[[], float],
    second: Callable[[], float],
    *,
    pairs: int,
    warm_ups: int = 1,
    on_pair: Callable[[], None] = lambda: None,
) -> Paired:
    """Run two timed actions alternately.

    The order within a pair alternates too, so that neither variant always finds the caches as the other left them.

    Args:
        first, second: actions; each runs once per call and returns its seconds, preparation excluded.
        pairs: number of measured pairs.
        warm_ups: number of pairs that run first and are not counted.
        on_pair: callback after each measured pair.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-warm_ups, pairs):
        taken = [0.0, 0.0]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            taken[which] = (first, second)[which]()
        if number >= 0:
            for measured, elapsed in zip(times, taken, strict=True):
                measured.append(elapsed)
            on_pair()
    return Paired(first_s=tuple(times[0]), second_s=tuple(times[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Measured number that is comparable between machines of different speed.

    Attributes:
        name: key in the JSON file.
        value: measured value.
        means: description in a few words.
        target: required bound; None if there is no requirement.
        side: whether the value must be at most or at least the target.
    """

    name: str
    value: float
    means: str
    target: float | None = None
    side: Literal["at most", "at least"] = "at most"

    @property
    def is_met(self) -> bool | None:
        """Whether the value meets its target; None without a target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.side == "at most" else self.value >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a benchmark.

    Attributes:
        benchmark: name of the benchmark.
        ratios: ratios, with their targets.
        figures: seconds, bytes and counts; they hold for this machine and these settings only.
        settings: sizes that the figures depend on.
    """

    benchmark: str
    ratios: Sequence[Ratio]
    figures: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the JSON file; the ratios come first, each under its own name."""
        asked = [ratio for ratio in self.ratios if ratio.target is not None]
        return {
            **{ratio.name: ratio.value for ratio in self.ratios},
            "targets": {
                ratio.name: {ratio.side.replace(" ", "_"): ratio.target, "is_met": ratio.is_met} for ratio in asked
            },
            "figures": dict(self.figures),
            "settings": dict(self.settings),
            "benchmark": self.benchmark,
            "provenance": provenance(),
        }

    def table(self) -> Table:
        """Return the ratios as a table for the terminal."""
        table = Table(title=f"{self.benchmark} ({_cores()} CPU cores)", title_justify="left")
        for heading, justify in (
            ("ratio", "left"),
            ("measured", "right"),
            ("target", "right"),
            ("", "left"),
            ("meaning", "left"),
        ):
            table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
        for ratio in self.ratios:
            asked = "" if ratio.target is None else f"{ratio.side} {ratio.target:g}"
            mark = {None: "", True: "[green]✓[/]", False: "[red]✗[/]"}[ratio.is_met]
            table.add_row(ratio.name, f"{ratio.value:.4g}", asked, mark, ratio.means)
        return table


def show(result: Result, json_path: Path | None, console: Console) -> None:
    """Print the ratios and figures, and write everything to a JSON file if a path is given."""
    console.print(result.table())
    for name, value in result.figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        console.print(f"  {name}: {shown}", highlight=False, soft_wrap=True)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result.as_json(), indent=2) + "\n")
        console.print(f"written: {json_path}", highlight=False, soft_wrap=True)


def provenance() -> dict[str, Any]:
    """Return the machine, the versions of the packages, the commit and the time of a measurement."""
    versions = {}
    for package in _PACKAGES:
        for installed in (package, f"{package}-cpu"):
            try:
                versions[package] = metadata.version(installed)
            except metadata.PackageNotFoundError:
                continue
    return {
        "cpu_cores": _cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "python": platform.python_version(),
        "packages": versions,
        "revision": _revision(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _revision() -> str | None:
    """Return the commit, with a plus if the working tree differs from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() or None
