"""Progress of downloads to this machine: a bar on a terminal, otherwise a line every half minute."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rlad.models.locations import PinnedModel, fetch_model

_INTERVAL_S = 30.0
_MIB = 2**20


def fetch_here(models: Collection[PinnedModel], console: Console, *, weights: bool = True) -> dict[str, Path]:
    """Return the directories of models on this machine by their locations, after downloading what is missing.

    Raises:
        RladError: A model cannot be downloaded.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        found: dict[str, Path] = {}
        for model in models:
            if model.location not in found:
                download = _Download(model.reference, bars, console)
                found[model.location] = fetch_model(model.location, weights=weights, on_bytes=download.advance)
                download.finish()
        return found


class _Download:
    def __init__(self, reference: str, bars: Progress, console: Console) -> None:
        self._bars, self._console, self._title = bars, console, f"downloading {reference}"
        self._started = self._printed = time.monotonic()
        self._task = bars.add_task(self._title, total=None, visible=False)
        self._bytes = 0

    def advance(self, done: int, total: int | None) -> None:
        self._bytes = done
        self._bars.update(self._task, completed=done, total=total, visible=True)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed >= _INTERVAL_S:
            self._printed = now
            of_total = f" of {total / _MIB:,.0f}" if total else ""
            self._print(f"{self._title}: {done / _MIB:,.0f}{of_total} MiB")

    def finish(self) -> None:
        self._bars.remove_task(self._task)
        if self._bytes:
            self._print(
                f"[green]✓[/] {self._title}: {self._bytes / _MIB:,.1f} MiB "
                f"[dim]({time.monotonic() - self._started:.0f} s)[/]"
            )

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
