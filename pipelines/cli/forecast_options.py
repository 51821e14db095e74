"""Options that `rlad plan` and `rlad simulate` share, and what they make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.forecast.pools import PoolCosts
    from pipelines.simulation.workload import Lengths
    from rlad.config import RunConfig

DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="GPUs to predict speed for: a100, h100, h200 or b200.", show_default=False),
]
MedianTokens = Annotated[
    float | None,
    typer.Option(
        "--median-tokens",
        help="Median length of a response. [default: a quarter of rollout.max_response_tokens]",
        show_default=False,
    ),
]
Tail = Annotated[float, typer.Option("--tail", help="99th percentile of the lengths over their median.")]
PromptTokens = Annotated[
    int | None,
    typer.Option(
        "--prompt-tokens",
        help="Length of a prompt. [default: a quarter of rollout.max_prompt_tokens]",
        min=1,
        show_default=False,
    ),
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="NAME=VALUE",
        help="An assumption in place of the usual one, as training_share=0.35; again for another.",
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
) -> tuple[PoolCosts, Lengths]:
    """A run's pools on a device.

    Raises:
        PlanError: no figures of the device, or of a pool of the run.
        ConfigError: an assumption that cannot be.
    """
    from pipelines.forecast.assumptions import assumed_lengths, assumptions_from, work_of_step
    from pipelines.forecast.costs import Machine
    from pipelines.forecast.devices import find_device
    from pipelines.forecast.pools import PoolCosts

    machine = Machine(device=find_device(device), assumptions=assumptions_from(assume or []))
    lengths = assumed_lengths(config.rollout, median=median_tokens, tail=tail, seed=config.seed)
    prompt = max(1, config.rollout.max_prompt_tokens // 4) if prompt_tokens is None else prompt_tokens
    work = work_of_step(lengths, groups=config.training.prompts_per_step, prompt_tokens=prompt)
    return PoolCosts(config, machine, work), lengths
