"""`rlad doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(name="doctor", help="Check what works on this machine.", no_args_is_help=True)

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@app.callback()
def doctor() -> None:
    """Check what works on this machine."""


@app.command()
def sandbox(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False) -> None:
    """Check the sandbox that judges programs: namespaces, Landlock, seccomp and limits.

    Runs a program that tries to leave it. Exits with status 1 if a property
    does not hold.
    """
    from rlad.sandbox.probe import probe_sandbox

    report = probe_sandbox()
    if as_json:
        checks = [asdict(check) for check in report.checks]
        typer.echo(json.dumps({"status": report.status, "isolation": report.level, "checks": checks}, indent=2))
    else:
        console = Console()
        for check in report.checks:
            line = f"[{_COLOURS[check.status]}]{check.status:>7}[/] {escape(f'{check.name}: {check.detail}')}"
            console.print(line, soft_wrap=not console.is_terminal, highlight=False)
            if check.remedy:
                console.print(f"{'':8}{escape(check.remedy)}", soft_wrap=not console.is_terminal, highlight=False)
        console.print(f"isolation: {report.level}", highlight=False)
    if report.status == "error":
        raise typer.Exit(1)
