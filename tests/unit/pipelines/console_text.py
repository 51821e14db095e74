"""Console output as plain text of 80 columns."""

from __future__ import annotations

import io
import re

from rich.console import Console, RenderableType

WIDTH = 80


def terminal() -> Console:
    """Return a console that writes to memory and behaves like a terminal of 80 columns."""
    return Console(width=WIDTH, file=io.StringIO(), force_terminal=True)


def text_of(console: Console) -> str:
    """Return what `terminal()` has written, without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def rendered(renderable: RenderableType) -> str:
    """Render at 80 columns."""
    console = Console(width=WIDTH, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def cells_of(text: str) -> set[str]:
    """Return the cells of all rendered table lines. A wrapped cell appears as several cells."""
    lines = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    return {cell.strip() for line in lines for cell in re.split("[│┃]", line) if cell.strip()}
