"""`rlad plan`: check a run before it starts, and forecast a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipelines.cli.arguments import ConfigFile, Overrides
from pipelines.cli.forecast_options import (
    TAIL,
    Assume,
    DeviceName,
    MedianTokens,
    PricePerGpuHour,
    PromptTokens,
    Tail,
    pool_costs,
)
from rlad.errors import PlanError

if TYPE_CHECKING:
    from pipelines.forecast.tables import Forecast

app = typer.Typer()

_MEMORY_GIB = 80.0


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster to plan for, without --gpus.",
            show_default="cluster.address, else this machine",
        ),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="CPUs to plan with.",
            show_default="those of the cluster or machine; 12 for each of --gpus",
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(metavar="N", help="GPUs to plan with.", show_default="those of the cluster or machine"),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Memory of one GPU, in GiB.", show_default="that of --device, else 80"),
    ] = None,
    device: DeviceName = None,
    median_tokens: MedianTokens = None,
    tail: Tail = TAIL,
    prompt_tokens: PromptTokens = None,
    price_per_gpu_hour: PricePerGpuHour = None,
    assume: Assume = None,
) -> None:
    """Check CONFIG in seconds, without starting an engine.

    Checks models, vocabularies, chat templates, prompts, verifiers, placement
    and memory. With --device, forecasts the duration of a step. Exits with
    status 1 if a check fails.
    """
    from pipelines.environment.packages import collect_packages
    from pipelines.forecast.devices import find_device
    from pipelines.forecast.tables import forecast
    from pipelines.planning.packages import package_findings
    from pipelines.planning.plan import CPUS_PER_GPU, available_resources, make_plan
    from pipelines.resolution.models import ModelFiles
    from rlad.config import load_run_config

    settings = load_run_config(config, [*(overrides or []), *([f"cluster.address={address}"] if address else [])])
    memory_gib = gpu_memory_gib or (find_device(device).memory_gib if device else _MEMORY_GIB)
    files, console = ModelFiles(), Console()
    available = available_resources(settings, cpus=cpus, gpus=gpus)
    with Console(stderr=True).status("checking models, prompts and answers"):
        made = make_plan(settings, available, gpu_memory_gib=memory_gib, files=files)
    here = package_findings(settings, collect_packages(), is_elsewhere=gpus is not None)
    made = replace(made, findings=[*made.findings, *here])
    console.print(made.table())
    if gpus and cpus is None and available.cpus == gpus * CPUS_PER_GPU:
        print_lines(console, [f"planned with {CPUS_PER_GPU} CPUs for each GPU; --cpus sets another number"])
    print_lines(console, (finding.line() for finding in made.findings))
    if device is not None:
        try:
            costs, lengths = pool_costs(
                settings,
                device,
                median_tokens=median_tokens,
                tail=tail,
                prompt_tokens=prompt_tokens,
                assume=assume,
                files=files,
            )
        except PlanError as error:  # a run without a forecast can still be valid
            print_lines(console, [f"[yellow]no forecast[/]: {error}"])
        else:
            price = settings.cost.price_per_gpu_hour if price_per_gpu_hour is None else price_per_gpu_hour
            _print_forecast(forecast(costs, lengths), console, price_per_hour=price)
    if made.has_errors:
        raise typer.Exit(1)


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print each text on a line of its own. Wrap between words on a terminal; never wrap in files and pipes."""
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def _print_forecast(found: Forecast, console: Console, *, price_per_hour: float | None) -> None:
    console.print(found.table())
    print_lines(console, found.sentences(price_per_hour=price_per_hour))
