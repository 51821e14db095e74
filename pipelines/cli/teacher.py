"""`rlad teacher`: teacher services that several runs share, and the check of a run's teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.cli.arguments import ConfigFile, Overrides

if TYPE_CHECKING:
    from pipelines.teacher_service import ServiceState

_HELP = "Manage teacher services, which several runs share, and check the teacher of a run."

app = typer.Typer(name="teacher", help=_HELP, no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the service.")]
Address = Annotated[str, typer.Option(help="Address of the Ray cluster; `auto` for the cluster of this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(help=_HELP)
def teacher() -> None:
    """Group of the `rlad teacher` commands."""


@app.command()
def deploy(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the service, for example configs/teachers/kk_smoke_cpu.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that override the file: key=value, for example replicas=2.")
    ] = None,
    address: Address = "auto",
    timeout: Annotated[float, typer.Option(help="Deadline for the start, in seconds.")] = 600.0,
    serve_file: Annotated[
        Path | None,
        typer.Option(
            help="Write an equivalent config file for `serve deploy` and exit without deploying.", show_default=False
        ),
    ] = None,
) -> None:
    """Deploy the teacher service of CONFIG, or update the service of the same name.

    The service runs until it is deleted. Runs refer to it by
    `teacher: {service: NAME}`, or by `teacher: {url: URL}` over HTTP.
    """
    from pipelines import teacher_service
    from pipelines.pretrain import ensure_models

    service = teacher_service.read_service(config, overrides or [])
    console = Console()
    if serve_file is not None:
        teacher_service.write_serve_file(service, serve_file, source=config.as_posix())
        console.print(f"wrote {serve_file}; deploy it with `serve deploy`", soft_wrap=True, highlight=False)
        return
    ensure_models([service.path], console)
    with console.status(f"deploying {service.name}"):
        state = teacher_service.deploy(service, address=address, timeout_s=timeout)
    _print_one(state, console)


@app.command(name="list")
def list_services(address: Address = "auto", as_json: AsJson = False) -> None:
    """List the teacher services of a cluster."""
    from pipelines import teacher_service

    states = teacher_service.states(address=address)
    if as_json:
        typer.echo(json.dumps([teacher_service.as_dict(state) for state in states]))
        return
    print_services(states, Console())


@app.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the service; default: the only service of the cluster.", show_default=False),
    ] = None,
    address: Address = "auto",
    as_json: AsJson = False,
) -> None:
    """Show a teacher service: replicas, model, statistics and ongoing groups by client.

    Exits with status 1 if no replica is running.
    """
    from pipelines import teacher_service

    state = teacher_service.state(name, address=address)
    if as_json:
        typer.echo(json.dumps(teacher_service.as_dict(state)))
    else:
        _print_one(state, Console())
    if not state.running:
        raise typer.Exit(1)


@app.command()
def delete(
    name: Name,
    address: Address = "auto",
    timeout: Annotated[float, typer.Option(help="Deadline for the deletion, in seconds.")] = 600.0,
) -> None:
    """Delete a teacher service after its ongoing groups.

    Runs that use the service fail. They can be resumed once it is deployed again.
    """
    from pipelines import teacher_service

    teacher_service.delete(name, address=address, timeout_s=timeout)
    typer.echo(f"deleted {name}")


@app.command()
def check(
    config: ConfigFile,
    overrides: Overrides = None,
    prompts: Annotated[
        int, typer.Option(min=1, help="Training prompts to answer, `rollout.group_size` responses each.")
    ] = 64,
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Likely tokens whose overlap is computed; 0 leaves the overlap out."),
    ] = 8,
    picture: Annotated[
        Path | None, typer.Option(help="File for the picture (PNG).", show_default="runs/NAME-teacher.png")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether the teacher of CONFIG is worth it, before a run.

    The untrained student answers training prompts. The teacher scores the
    responses, and the verifier judges them: does the teacher prefer the right
    ones? Nothing is trained.
    """
    from rlad.config import load_run_config

    settings = load_run_config(config, overrides or [])
    from pipelines.cli.tables.teacher import print_check
    from pipelines.teacher_check import run_check

    console = Console(stderr=as_json)
    result = run_check(
        settings,
        console,
        prompts=prompts,
        top_k=top_k,
        picture=picture or Path("runs") / f"{settings.name}-teacher.png",
    )
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    else:
        print_check(result, console)


def print_services(states: Sequence[ServiceState], console: Console) -> None:
    """Print a table of services, then the URL of each service with an HTTP interface on a line of its own."""
    table = Table()
    table.add_column("service", overflow="fold")
    table.add_column("status")
    for column in ("replicas", "scored", "ongoing"):
        table.add_column(column, justify="right")
    for state in states:
        scored, ongoing = (
            ("", "") if state.stats is None else (str(state.stats.num_groups), str(state.stats.ongoing_groups))
        )
        table.add_row(state.name, state.status, str(state.running), scored, ongoing)
    console.print(table)
    for state in states:
        if state.url is not None:
            console.print(f"{state.name}: {state.url}", soft_wrap=True, highlight=False, markup=False)


def _print_one(state: ServiceState, console: Console) -> None:
    def line(text: str, *, markup: bool = False) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=markup)

    replicas = ", ".join(f"{number} {kind.lower()}" for kind, number in state.replicas.items() if number) or "none"
    line(f"[bold]{state.name}[/]: {state.status}; replicas: {replicas}", markup=True)
    if state.message:
        line(state.message)
    if state.identity is not None:
        identity = state.identity
        line(f"model {identity.teacher}, tokenizer {identity.tokenizer}, {identity.engine} engine")
        quota = identity.max_groups_per_client or "unlimited"
        line(f"quota: {quota} groups in progress per client and replica")
    if state.stats is not None:
        stats = state.stats
        lookups = stats.cache_hits + stats.cache_misses
        hit_rate = f"{stats.cache_hits / lookups:.0%}" if lookups else "none"
        line(
            f"scored: {stats.num_groups} groups ({stats.num_tokens} tokens), {hit_rate} of responses from the cache; "
            f"refused by quota: {stats.refused_groups}; busy: {stats.busy_s:.0f} s"
        )
        for client, groups in sorted(stats.ongoing.items()):
            line(f"  {client}: {groups} groups in progress")
    line(f"use in a run: `teacher: {{service: {state.name}}}`")
    if state.url is not None:
        line(f"or with its token: `teacher: {{url: {state.url}}}`; API documentation: {state.url}/docs")
