"""`rlad plan`: whether a run can work, before anything is started, and what a step of it should take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipelines.cli.forecast_options import TAIL, Assume, DeviceName, MedianTokens, PromptTokens, Tail, pool_costs
from rlad.errors import PlanError

if TYPE_CHECKING:
    from pipelines.forecast.tables import Forecast

app = typer.Typer()

_MEMORY_GIB = 80.0


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, for example configs/smoke_cpu.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that win over the file: key=value, for example training.steps=10."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Plan for the Ray cluster at this address.")] = None,
    cpus: Annotated[
        float | None,
        typer.Option(help="Plan for a cluster with so many CPUs. [default: this machine's]", show_default=False),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(help="Plan for a cluster with so many GPUs. [default: this machine's]", show_default=False),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option(help="Memory of one of its GPUs. [default: that of --device, else 80]", show_default=False),
    ] = None,
    device: DeviceName = None,
    median_tokens: MedianTokens = None,
    tail: Tail = TAIL,
    prompt_tokens: PromptTokens = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="What a GPU costs an hour.", min=0, show_default=False)
    ] = None,
    assume: Assume = None,
) -> None:
    """Check CONFIG in seconds, without starting an engine: models, vocabularies, templates, prompts, placement, memory. With --device, predict a step."""
    from pipelines.forecast.devices import find_device
    from pipelines.forecast.tables import forecast
    from pipelines.planning.plan import available_resources, make_plan
    from rlad.config import load_run_config

    settings = load_run_config(config, [*(overrides or []), *([f"cluster.address={address}"] if address else [])])
    memory_gib = gpu_memory_gib or (find_device(device).memory_gib if device else _MEMORY_GIB)
    made = make_plan(settings, available_resources(settings, cpus=cpus, gpus=gpus), gpu_memory_gib=memory_gib)
    console = Console()
    console.print(made.table())
    for finding in made.findings:
        console.print(finding.line(), soft_wrap=True, highlight=False)
    if device is not None:
        try:
            costs, lengths = pool_costs(
                settings, device, median_tokens=median_tokens, tail=tail, prompt_tokens=prompt_tokens, assume=assume
            )
        except PlanError as error:  # what cannot be predicted can run all the same
            console.print(f"[yellow]no prediction[/]: {error}", soft_wrap=True, highlight=False)
        else:
            _print_forecast(forecast(costs, lengths), console, price_per_hour=price_per_gpu_hour)
    if made.has_errors:
        raise typer.Exit(1)


def _print_forecast(found: Forecast, console: Console, *, price_per_hour: float | None) -> None:
    console.print(found.table())
    for sentence in found.sentences(price_per_hour=price_per_hour):
        console.print(sentence, soft_wrap=True, highlight=False)
