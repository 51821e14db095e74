"""`rlad doctor`: examine this machine and a cluster, and name a remedy for each problem."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(name="doctor")

Transport = Literal["object_store", "nccl", "ipc", "gloo"]

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@app.callback(invoke_without_command=True)
def doctor(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to check.", show_default="this machine")
    ] = None,
    transport: Annotated[
        Transport, typer.Option(help="Transport of weight updates in the trial run.")
    ] = "object_store",
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Directory for temporary files that all nodes see.", show_default="the system's"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Start no engines: takes seconds.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the trial run; repeatable.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine or a cluster.

    Checks packages, driver, shared memory and sandbox. Then trains a small
    model for three steps with every engine: compares the log-probabilities of
    rollout, teacher and learner, and measures weight updates, memory, object
    store and NCCL. Exits with status 1 if a check fails.
    """
    if context.invoked_subcommand is not None:
        return
    from pipelines.doctor.checks import run_checks
    from pipelines.doctor.examination import examine
    from pipelines.doctor.report import as_dict, print_report

    console = Console()
    with Console(stderr=True).status("examining, with every engine" if not quick else "examining"):
        facts = examine(
            address=address,
            transport=transport,
            work_dir=work_dir,
            starts_engines=not quick,
            overrides=overrides or [],
        )
    checks = run_checks(facts)
    if as_json:
        typer.echo(json.dumps(as_dict(checks, facts), indent=2))
    else:
        print_report(checks, console)
    if any(check.status == "error" for check in checks):
        raise typer.Exit(1)


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
