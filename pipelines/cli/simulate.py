"""`rlad simulate`: a run under a clock that jumps, on as many GPUs as one likes to imagine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipelines.cli.forecast_options import TAIL, Assume, DeviceName, MedianTokens, PromptTokens, Tail, pool_costs
from rlad.errors import PlanError

if TYPE_CHECKING:
    from pipelines.forecast.pools import PoolCosts
    from pipelines.forecast.simulated import SimulatedSplit
    from pipelines.forecast.step import Sizes
    from pipelines.simulation.workload import Lengths, Speeds
    from rlad.config import RunConfig

app = typer.Typer()

# A split of so many groups is simulated in seconds.
_MOST_GROUPS = 1500


def _milliseconds(what: str) -> object:
    return typer.Option(help=f"{what}, in ms; goes before what --device says.", min=0, show_default=False)


@app.command()
def simulate(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that win over the file: key=value.")] = None,
    device: DeviceName = None,
    gpus: Annotated[
        int | None,
        typer.Option(help="Divide so many GPUs among the pools, in several ways.", min=1, show_default=False),
    ] = None,
    splits: Annotated[int, typer.Option(help="How many ways.", min=1)] = 6,
    median_tokens: MedianTokens = None,
    tail: Tail = TAIL,
    prompt_tokens: PromptTokens = None,
    assume: Assume = None,
    steps: Annotated[int, typer.Option(help="Steps to simulate; fewer where a step has very many groups.", min=1)] = 20,
    failures_per_day: Annotated[
        float, typer.Option(help="Of the whole run's workers; those of rollout workers are simulated.", min=0)
    ] = 0.0,
    restart_s: Annotated[float, typer.Option(help="Seconds until a lost worker's replacement serves.", min=0)] = 120.0,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="What a GPU costs an hour.", min=0, show_default=False)
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Responses a rollout worker decodes at once.", min=1, show_default=False)
    ] = None,
    token_ms: Annotated[float | None, _milliseconds("Between two tokens of a response")] = None,
    teacher_token_ms: Annotated[float | None, _milliseconds("Of a teacher replica, for a response token")] = None,
    verdict_ms: Annotated[float | None, _milliseconds("Of a verifier process, for a group")] = None,
    learner_token_ms: Annotated[float | None, _milliseconds("Of the whole learner, for a response token")] = None,
    update_ms: Annotated[float | None, _milliseconds("Of an optimizer step")] = None,
    weights_ms: Annotated[float | None, _milliseconds("Until all samplers have new weights")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take CONFIG through the real scheduler in virtual time: what a step would take, who would wait, and which division of the GPUs is best."""
    from pipelines.forecast.assumptions import assumed_lengths
    from pipelines.forecast.simulated import simulate_split
    from rlad.config import load_run_config

    settings = load_run_config(config, overrides or [])
    given = {
        "token_s": token_ms,
        "teacher_token_s": teacher_token_ms,
        "verdict_s": verdict_ms,
        "learner_token_s": learner_token_ms,
        "update_s": update_ms,
        "weights_s": weights_ms,
    }
    known = {name: milliseconds / 1e3 for name, milliseconds in given.items() if milliseconds is not None}
    costs = None
    if device is None:
        require_speeds(settings, known, gpus=gpus)
        lengths = assumed_lengths(settings.rollout, median=median_tokens, tail=tail, seed=settings.seed)
    else:
        costs, lengths = pool_costs(
            settings, device, median_tokens=median_tokens, tail=tail, prompt_tokens=prompt_tokens, assume=assume
        )
    console, errors = Console(), Console(stderr=True)
    simulated_steps = bounded_steps(settings, steps)
    done = []
    for sizes in track(
        sizes_to_simulate(settings, costs, gpus, splits),
        "simulating",
        console=errors,
        disable=not errors.is_terminal,
        transient=True,
    ):
        speeds, teachers = _speeds(settings, costs, sizes, known, slots)
        done.append(
            simulate_split(
                settings,
                sizes,
                lengths=lengths,
                speeds=speeds,
                teachers=teachers,
                failures_per_day=failures_per_day,
                restart_s=restart_s,
                steps=simulated_steps,
            )
        )
    if as_json:
        typer.echo(json.dumps([split.as_dict(price_per_hour=price_per_gpu_hour) for split in done]))
        return
    console.print(splits_table(done, price_per_hour=price_per_gpu_hour))
    for sentence in _sentences(settings, costs, lengths, done):
        console.print(sentence, soft_wrap=True, highlight=False)


def require_speeds(config: RunConfig, known: dict[str, float], *, gpus: int | None) -> None:
    """Refuse a simulation that nobody has told how fast its engines are.

    Raises:
        PlanError: with the options that are missing.
    """
    if config.offline is not None:
        raise PlanError("only runs that sample from the student are simulated; this one trains on its teacher's traces")
    if gpus is not None:
        raise PlanError(
            "--gpus divides GPUs by what they can do: say which they are with --device, for example --device h100"
        )
    needed = ["token_s", "learner_token_s", *(["teacher_token_s"] if config.scoring_pools else [])]
    if missing := [f"--{name.removesuffix('_s').replace('_', '-')}-ms" for name in needed if name not in known]:
        raise PlanError(
            f"how fast are the engines? Give --device for runs on GPUs, or as measured {', '.join(missing)} (metrics.jsonl of a run has them)"
        )


def bounded_steps(config: RunConfig, steps: int) -> int:
    """As many as asked for, unless so many groups would take too long; enough for the samplers to get as far ahead as they may."""
    fewest = config.training.max_staleness + 3
    return max(1, min(steps, config.training.steps, max(fewest, _MOST_GROUPS // config.training.prompts_per_step)))


def sizes_to_simulate(config: RunConfig, costs: PoolCosts | None, gpus: int | None, count: int) -> Sequence[Sizes]:
    """The configured sizes, or several that divide so many GPUs.

    Raises:
        PlanError: no division of them gives every pool what it needs.
    """
    from pipelines.forecast.sizes import splits, spread_of
    from pipelines.forecast.step import fixed_devices, sizes_of

    if costs is None or gpus is None:
        return [sizes_of(config)]
    ranked = splits(costs, gpus - fixed_devices(config), staleness=config.training.max_staleness)
    if not ranked:
        raise PlanError(
            f"{gpus} {costs.machine.device.title} cannot be divided so that every pool has a worker and the learner its memory"
        )
    return [split.sizes for split in spread_of(ranked, count)]


def splits_table(done: Sequence[SimulatedSplit], *, price_per_hour: float | None) -> Table:
    """A row a split; busy shares in percent."""
    from pipelines.forecast.step import cost_of_step

    scorers, fastest = list(done[0].sizes.scorers), min(split.step_s for split in done)
    table = Table(title=f"Simulated, {len(done[0].run.steps)} steps", title_justify="left")
    priced = ["cost a step"] if price_per_hour is not None else []
    busy = list(done[0].run.busy)
    columns = [
        "rollout",
        *scorers,
        "learner",
        "GPUs",
        "step s",
        "over bound",
        "tokens/s",
        *priced,
        "lost",
        *(f"{pool} busy" for pool in busy),
    ]
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("bounded by")
    for split in done:
        cost = (
            []
            if price_per_hour is None
            else [f"{cost_of_step(split.step_s, split.devices, price_per_hour=price_per_hour):,.2f}"]
        )
        table.add_row(
            *map(str, (split.sizes.rollout, *split.sizes.scorers.values(), split.sizes.learner)),
            f"{split.devices:g}",
            f"{split.step_s:.1f}",
            f"{split.run.makespan_over_bound:.2f}",
            f"{split.tokens_per_s:,.0f}",
            *cost,
            str(split.run.lost_workers),
            *(f"{split.run.busy[pool]:.0%}" for pool in busy),
            split.bound_by,
            style="bold" if split.step_s == fastest and len(done) > 1 else None,
        )
    return table


def _speeds(
    config: RunConfig, costs: PoolCosts | None, sizes: Sizes, known: dict[str, float], slots: int | None
) -> tuple[Speeds, int]:
    """The simulator's speeds, and how many replicas score: those of the pool with the most to do."""
    from pipelines.forecast.simulated import slowest_scorer, speeds_of
    from pipelines.simulation.workload import Speeds

    if costs is not None:
        slowest = slowest_scorer(costs, sizes)
        predicted = speeds_of(costs, sizes)
    else:
        slowest = next(iter(sizes.scorers), None)
        free = dict.fromkeys(
            ("token_s", "teacher_token_s", "verdict_s", "learner_token_s", "update_s", "weights_s"), 0.0
        )
        predicted = Speeds(**free, slots=config.rollout.max_sequences)
    speeds = replace(predicted, slots=predicted.slots if slots is None else slots, **known)
    return speeds, sizes.scorers[slowest] if slowest is not None else 0


def _sentences(
    config: RunConfig, costs: PoolCosts | None, lengths: Lengths, done: Sequence[SimulatedSplit]
) -> list[str]:
    best = min(done, key=lambda split: split.step_s)
    found = [f"fastest: {' '.join(best.sizes.overrides())}"] if len(done) > 1 else []
    in_flight = (config.training.max_staleness + 1) * config.training.prompts_per_step
    if (workers := max(split.sizes.rollout for split in done)) > in_flight:
        found.append(
            f"at most {in_flight} groups are in flight: of {workers} rollout workers the others have nothing to do. Raise training.prompts_per_step"
        )
    found.append(f"responses: {lengths.sentence()}")
    if costs is not None:
        found.append(
            f"{costs.machine.device.title}; prompts of {costs.work.prompt_tokens} tokens; {costs.machine.assumptions.sentence()}"
        )
    return found
