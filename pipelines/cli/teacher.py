"""`rlad teacher`: a teacher as a service of its own, which several runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.teacher_service import ServiceState

app = typer.Typer(
    name="teacher", help="A teacher as a service on a Ray cluster, which several runs share.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The service's name.")]
Address = Annotated[str, typer.Option(help="Ray cluster, or `auto` for the one that this machine is part of.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def teacher() -> None:
    """A teacher as a service on a Ray cluster, which several runs share."""


@app.command()
def deploy(
    config: Annotated[
        Path, typer.Argument(help="A service's YAML file, for example configs/teachers/kk_smoke_cpu.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that win over the file: key=value, for example replicas=2.")
    ] = None,
    address: Address = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds until which it has to be up.")] = 600.0,
    serve_file: Annotated[
        Path | None,
        typer.Option(
            help="Write what `serve deploy` takes for the same into this file, and deploy nothing.", show_default=False
        ),
    ] = None,
) -> None:
    """Deploy the service of CONFIG, or change the one of its name. It stays until it is deleted.

    Runs use it by one line: `teacher: {service: NAME}`, or `teacher: {url: ...}` where it has HTTP.
    """
    from pipelines import teacher_service
    from pipelines.pretrain import ensure_models

    service = teacher_service.read_service(config, overrides or [])
    console = Console()
    if serve_file is not None:
        teacher_service.write_serve_file(service, serve_file, source=config.as_posix())
        console.print(f"{serve_file}: for `serve deploy`", soft_wrap=True, highlight=False)
        return
    ensure_models([service.path], console)
    with console.status(f"deploying {service.name}"):
        state = teacher_service.deploy(service, address=address, timeout_s=timeout)
    _print_one(state, console)


@app.command(name="list")
def list_services(address: Address = "auto", as_json: AsJson = False) -> None:
    """List the services of a cluster."""
    from pipelines import teacher_service

    states = teacher_service.states(address=address)
    if as_json:
        typer.echo(json.dumps([teacher_service.as_dict(state) for state in states]))
        return
    table = Table()
    for column in ("service", "status", "replicas", "groups", "under way", "url"):
        table.add_column(
            column, justify="right" if column in ("replicas", "groups", "under way") else "left", overflow="fold"
        )
    for state in states:
        groups, ongoing = (
            ("", "") if state.stats is None else (str(state.stats.num_groups), str(state.stats.ongoing_groups))
        )
        table.add_row(state.name, state.status, str(state.running), groups, ongoing, state.url or "")
    Console().print(table)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="The service's name. [default: the only one]", show_default=False)
    ] = None,
    address: Address = "auto",
    as_json: AsJson = False,
) -> None:
    """Say how a service stands: replicas, model, what it has done, who has groups under way."""
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
    timeout: Annotated[float, typer.Option(help="Seconds until which it has to be gone.")] = 600.0,
) -> None:
    """Take a service down, after the groups that it has. Runs that use it fail, and can be continued when it is there again."""
    from pipelines import teacher_service

    teacher_service.delete(name, address=address, timeout_s=timeout)
    typer.echo(f"{name} is deleted")


def _print_one(state: ServiceState, console: Console) -> None:
    replicas = ", ".join(f"{number} {word.lower()}" for word, number in state.replicas.items() if number) or "none"
    console.print(f"[bold]{state.name}[/]: {state.status}; replicas: {replicas}", soft_wrap=True, highlight=False)
    if state.message:
        console.print(state.message, soft_wrap=True, highlight=False, markup=False)
    if state.identity is not None:
        each = state.identity
        console.print(
            f"model {each.teacher}, tokenizer {each.tokenizer}, {each.engine} engine", soft_wrap=True, highlight=False
        )
        console.print(
            f"a client may have {each.max_groups_per_client} groups under way in a replica",
            soft_wrap=True,
            highlight=False,
        )
    if state.stats is not None:
        each_stats = state.stats
        found = each_stats.cache_hits + each_stats.cache_misses
        hits = f"{each_stats.cache_hits / found:.0%}" if found else "none"
        console.print(
            f"scored {each_stats.num_groups} groups ({each_stats.num_tokens} tokens), responses from the cache {hits}, refused for quota "
            f"{each_stats.refused_groups}; busy {each_stats.busy_s:.0f} s",
            soft_wrap=True,
            highlight=False,
        )
        for client, groups in sorted(each_stats.ongoing.items()):
            console.print(f"  {client}: {groups} groups under way", soft_wrap=True, highlight=False, markup=False)
    console.print(f"runs use it by `teacher: {{service: {state.name}}}`", soft_wrap=True, highlight=False)
    if state.url is not None:
        console.print(
            f"or, with its token, by `teacher: {{url: {state.url}}}`; its API: {state.url}/docs",
            soft_wrap=True,
            highlight=False,
        )
