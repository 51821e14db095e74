"""`rlad simulate`: simulate a run in virtual time, with any number of GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

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
from pipelines.cli.plan import print_lines
from pipelines.cli.tables.splits import print_splits
from rlad.errors import PlanError

if TYPE_CHECKING:
    from pipelines.forecast.pools import PoolCosts
    from pipelines.forecast.simulated import SimulatedSplit
    from pipelines.forecast.step import Sizes
    from pipelines.simulation.workload import Lengths, Speeds
    from rlad.config import RunConfig

app = typer.Typer()

# Bound the time of a simulation without --steps: this many groups take a few seconds.
_STEPS, _MAX_GROUPS = 20, 1500
_SPEEDS_PANEL = "Measured speeds (override those of --device)"


def _milliseconds(description: str) -> object:
    return typer.Option(metavar="MS", help=f"{description}.", min=0, show_default=False, rich_help_panel=_SPEEDS_PANEL)


@app.command()
def simulate(
    config: ConfigFile,
    overrides: Overrides = None,
    device: DeviceName = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="GPUs to divide among the pools, in several ways.", min=1, show_default="configured sizes"
        ),
    ] = None,
    splits: Annotated[int, typer.Option(metavar="N", help="Maximum number of divisions to simulate.", min=1)] = 6,
    median_tokens: MedianTokens = None,
    tail: Tail = TAIL,
    prompt_tokens: PromptTokens = None,
    assume: Assume = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps to simulate.", min=1, show_default="20, fewer if a step has many groups"),
    ] = None,
    failures_per_day: Annotated[
        float,
        typer.Option(metavar="N", help="Failures of all workers, spread evenly over their GPUs.", min=0),
    ] = 0.0,
    restart_s: Annotated[
        float, typer.Option(metavar="S", help="Seconds until the replacement of a lost worker serves.", min=0)
    ] = 120.0,
    price_per_gpu_hour: PricePerGpuHour = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Concurrent responses of a rollout worker.",
            min=1,
            show_default=False,
            rich_help_panel=_SPEEDS_PANEL,
        ),
    ] = None,
    token_ms: Annotated[float | None, _milliseconds("Time between two tokens of a response")] = None,
    teacher_token_ms: Annotated[float | None, _milliseconds("Time of a teacher replica per response token")] = None,
    verdict_ms: Annotated[float | None, _milliseconds("Time of a verifier process per group")] = None,
    learner_token_ms: Annotated[float | None, _milliseconds("Time of all learner ranks per response token")] = None,
    update_ms: Annotated[float | None, _milliseconds("Time of an optimizer step")] = None,
    weights_ms: Annotated[float | None, _milliseconds("Time until all rollout workers have new weights")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Simulate CONFIG in virtual time with the real scheduler.

    Prints the duration of a step, the utilization of each pool, and the
    bottleneck. With --gpus, compares several divisions of the GPUs. Speeds come
    from --device, or from measurements given with the options in milliseconds.
    """
    from pipelines.forecast.assumptions import assumed_lengths
    from pipelines.forecast.simulated import simulate_split
    from rlad.config import load_run_config

    settings = load_run_config(config, overrides or [])
    price = settings.cost.price_per_gpu_hour if price_per_gpu_hour is None else price_per_gpu_hour
    options_ms = {
        "token_s": token_ms,
        "teacher_token_s": teacher_token_ms,
        "verdict_s": verdict_ms,
        "learner_token_s": learner_token_ms,
        "update_s": update_ms,
        "weights_s": weights_ms,
    }
    known = {name: milliseconds / 1e3 for name, milliseconds in options_ms.items() if milliseconds is not None}
    costs = None
    if device is None:
        require_speeds(settings, known, gpus=gpus)
        lengths = assumed_lengths(settings.rollout, median=median_tokens, tail=tail, seed=settings.seed)
    else:
        costs, lengths = pool_costs(
            settings, device, median_tokens=median_tokens, tail=tail, prompt_tokens=prompt_tokens, assume=assume
        )
    console, errors = Console(), Console(stderr=True)
    simulated_steps = bounded_steps(settings, _STEPS) if steps is None else min(steps, settings.training.steps)
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
        if costs is not None and costs.from_table:
            errors.print(_table_sentence(costs), soft_wrap=True, highlight=False)
        typer.echo(json.dumps([split.as_dict(price_per_hour=price) for split in done]))
        return
    print_splits(done, console, price_per_hour=price)
    print_lines(console, _sentences(settings, costs, lengths, done))


def require_speeds(config: RunConfig, known: dict[str, float], *, gpus: int | None) -> None:
    """Check that the speeds of a simulation without `--device` are complete.

    Raises:
        PlanError: The run is offline, `--gpus` is set, or speeds are missing; the message names their options.
    """
    if config.offline is not None:
        raise PlanError(
            "a simulation needs a run that samples from the student; this run trains on traces of its teacher"
        )
    if gpus is not None:
        raise PlanError("--gpus requires --device, for example --device h100")
    needed = ["token_s", "learner_token_s", *(["teacher_token_s"] if config.scoring_pools else [])]
    if missing := [f"--{name.removesuffix('_s').replace('_', '-')}-ms" for name in needed if name not in known]:
        raise PlanError(
            "the speed of the engines is unknown; set --device for runs on GPUs, or the measured "
            f"{', '.join(missing)} (from metrics.jsonl of a run)"
        )


def bounded_steps(config: RunConfig, steps: int) -> int:
    """Return the number of steps to simulate: `steps`, or fewer if a step has many groups.

    The result is never below max_staleness + 3, so that rollout reaches its maximum lead.
    """
    fewest = config.training.max_staleness + 3
    return max(1, min(steps, config.training.steps, max(fewest, _MAX_GROUPS // config.training.prompts_per_step)))


def sizes_to_simulate(config: RunConfig, costs: PoolCosts | None, gpus: int | None, count: int) -> Sequence[Sizes]:
    """Return the configured pool sizes, or up to `count` splits of `gpus` GPUs.

    Raises:
        PlanError: No split gives each pool a worker and the learner enough memory.
    """
    from pipelines.forecast.sizes import splits, spread_of
    from pipelines.forecast.step import fixed_devices, sizes_of

    if costs is None or gpus is None:
        return [sizes_of(config)]
    ranked = splits(costs, gpus - fixed_devices(config), staleness=config.training.max_staleness)
    if not ranked:
        raise PlanError(
            f"{gpus} {costs.machine.device.title} are too few for one worker in each pool and the learner's memory"
        )
    return [split.sizes for split in spread_of(ranked, count)]


def _speeds(
    config: RunConfig, costs: PoolCosts | None, sizes: Sizes, known: dict[str, float], slots: int | None
) -> tuple[Speeds, int]:
    """Return the simulator's speeds, and the number of replicas of the slowest scoring pool (0 without scoring)."""
    from pipelines.forecast.simulated import slowest_scorer, speeds_of
    from pipelines.simulation.workload import Speeds

    if costs is not None:
        slowest = slowest_scorer(costs, sizes)
        predicted = speeds_of(costs, sizes)
    else:
        slowest = next(iter(sizes.scorers), None)
        zero = dict.fromkeys(
            ("token_s", "teacher_token_s", "verdict_s", "learner_token_s", "update_s", "weights_s"), 0.0
        )
        predicted = Speeds(**zero, slots=config.rollout.max_sequences)
    speeds = replace(predicted, slots=predicted.slots if slots is None else slots, **known)
    return speeds, sizes.scorers[slowest] if slowest is not None else 0


def _sentences(
    config: RunConfig, costs: PoolCosts | None, lengths: Lengths, done: Sequence[SimulatedSplit]
) -> list[str]:
    best = min(done, key=lambda split: split.step_s)
    found = [f"fastest: {' '.join(best.sizes.overrides())}"] if len(done) > 1 else []
    busiest = best.run.work.bottleneck
    found.append(
        f"efficiency: {best.efficiency:.2f}, the time of the pool with the most work ({busiest}) over the step's"
    )
    in_flight = (config.training.max_staleness + 1) * config.training.prompts_per_step
    if (workers := max(split.sizes.rollout for split in done)) > in_flight:
        found.append(
            f"at most {in_flight} groups are in flight, so some of {workers} rollout workers are idle; "
            "raise training.prompts_per_step"
        )
    found.append(f"responses: {lengths.sentence()}")
    if costs is not None:
        found.append(
            f"assumptions: {costs.machine.device.title}; prompts of {costs.work.prompt_tokens} tokens; "
            f"{costs.machine.assumptions.sentence()}"
        )
        if costs.from_table:
            found.append(_table_sentence(costs))
    return found


def _table_sentence(costs: PoolCosts) -> str:
    return f"the hub cannot be reached; sizes from the built-in table of architectures: {', '.join(costs.from_table)}"
