"""What all benchmarks share: paired runs and their medians, ratios with what was asked of them, where they were measured, and how they are shown and kept.

A machine's speed drifts by more than most differences that matter, so two ways of doing a thing are run in turns, and a ratio is the median of the ratios
of neighbouring runs. Ratios come first; seconds are of one machine.
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
    Path | None, typer.Option("--json", help="Also write what was measured to this file.", show_default=False)
]
Pairs = Annotated[int, typer.Option(min=1, help="How often each pair of runs is measured.")]

_PACKAGES = ("torch", "transformers", "ray", "vllm", "deepspeed", "safetensors", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Seconds of two ways of doing one thing, run in turns; entry i of both was measured one behind the other."""

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs of first / second."""
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
        """Medians and shortest by name, and every pair's ratio: how far they spread says how far the median can be trusted."""
        return {
            f"{first}_s": self.first_median_s,
            f"{second}_s": self.second_median_s,
            f"{first}_best_s": min(self.first_s),
            f"{second}_best_s": min(self.second_s),
            f"{first}_over_{second}_pairs": [round(ratio, 4) for ratio in sorted(self.ratios)],
        }


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process. For what runs on one thread here and waits for nobody: whatever else the machine does disturbs it less."""
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
    """Run two timed actions in turns. Which of them begins changes from pair to pair, so that neither always finds what the other left in the caches.

    Args:
        first, second: do the thing once and return its seconds, without those of its preparation.
        warm_ups: pairs that are not counted.
        on_pair: called behind each counted pair.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-warm_ups, pairs):
        taken = [0.0, 0.0]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            taken[which] = (first, second)[which]()
        if number >= 0:
            for kept, one in zip(times, taken, strict=True):
                kept.append(one)
            on_pair()
    return Paired(first_s=tuple(times[0]), second_s=tuple(times[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A number that says the same on machines of different speed.

    Attributes:
        means: what it is, in a few words.
        target: what was asked of it; None where it is only shown.
        side: whether it must be at most or at least the target.
    """

    name: str
    value: float
    means: str
    target: float | None = None
    side: Literal["at most", "at least"] = "at most"

    @property
    def is_met(self) -> bool | None:
        """None where nothing was asked."""
        if self.target is None:
            return None
        return self.value <= self.target if self.side == "at most" else self.value >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark found.

    Attributes:
        figures: seconds, bytes and counts, of this machine and these settings.
        settings: sizes that the figures depend on.
    """

    benchmark: str
    ratios: Sequence[Ratio]
    figures: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The ratios first, each under its own name."""
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
        table = Table(title=f"{self.benchmark} ({_cores()} CPU cores)", title_justify="left")
        for heading, justify in (
            ("ratio", "left"),
            ("measured", "right"),
            ("asked", "right"),
            ("", "left"),
            ("what it is", "left"),
        ):
            table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
        for ratio in self.ratios:
            asked = "" if ratio.target is None else f"{ratio.side} {ratio.target:g}"
            mark = {None: "", True: "[green]✓[/]", False: "[red]✗[/]"}[ratio.is_met]
            table.add_row(ratio.name, f"{ratio.value:.4g}", asked, mark, ratio.means)
        return table


def show(result: Result, json_path: Path | None, console: Console) -> None:
    """Print the ratios and figures, and write everything to the file where one is wanted."""
    console.print(result.table())
    for name, value in result.figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        console.print(f"  {name}: {shown}", highlight=False, soft_wrap=True)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result.as_json(), indent=2) + "\n")
        console.print(f"written: {json_path}", highlight=False, soft_wrap=True)


def provenance() -> dict[str, Any]:
    """Where and with what it was measured."""
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
    """The commit, with a plus where files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
