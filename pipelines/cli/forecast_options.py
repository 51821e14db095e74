"""Options shared by `rlad plan` and `rlad simulate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.forecast.pools import PoolCosts
    from pipelines.resolution.models import ModelFiles
    from pipelines.simulation.workload import Lengths
    from rlad.config import RunConfig

PANEL = "Forecast options"

DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="GPU type to forecast for: a100, h100, h200 or b200.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
MedianTokens = Annotated[
    float | None,
    typer.Option(
        "--median-tokens",
        metavar="TOKENS",
        help="Median response length.",
        show_default="a quarter of rollout.max_response_tokens",
        rich_help_panel=PANEL,
    ),
]
Tail = Annotated[
    float,
    typer.Option(
        "--tail",
        metavar="RATIO",
        help="99th percentile of response length, divided by the median.",
        rich_help_panel=PANEL,
    ),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(
        "--prompt-tokens",
        metavar="TOKENS",
        help="Prompt length.",
        min=1,
        show_default="a quarter of rollout.max_prompt_tokens",
        rich_help_panel=PANEL,
    ),
]
PricePerGpuHour = Annotated[
    float | None,
    typer.Option(
        "--price-per-gpu-hour",
        metavar="PRICE",
        help="Price of one GPU per hour. Adds the cost of a step. Default: cost.price_per_gpu_hour.",
        min=0,
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="NAME=VALUE",
        help="Override an assumption, for example training_share=0.35. Repeatable.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
TAIL = 10.0


def pool_costs(
    config: RunConfig,
    device: str,
    *,
    median_tokens: float | None,
    tail: float,
    prompt_tokens: int | None,
    assume: list[str] | None,
    files: ModelFiles | None = None,
) -> tuple[PoolCosts, Lengths]:
    """Return the costs of a run's pools on a device, and the distribution of response lengths.

    Models that have been looked up already are taken from `files`.

    Raises:
        PlanError: The device is unknown, or the run cannot be forecast.
        ConfigError: An assumption or length is unknown or out of range.
    """
    from pipelines.forecast.assumptions import assumed_lengths, assumptions_from, work_of_step
    from pipelines.forecast.costs import Machine
    from pipelines.forecast.devices import find_device
    from pipelines.forecast.pools import PoolCosts

    machine = Machine(device=find_device(device), assumptions=assumptions_from(assume or []))
    lengths = assumed_lengths(config.rollout, median=median_tokens, tail=tail, seed=config.seed)
    prompt = max(1, config.rollout.max_prompt_tokens // 4) if prompt_tokens is None else prompt_tokens
    work = work_of_step(lengths, groups=config.training.prompts_per_step, prompt_tokens=prompt)
    return PoolCosts(config, machine, work, files), lengths
