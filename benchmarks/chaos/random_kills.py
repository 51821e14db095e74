"""Random kills: a process of a real run is killed (SIGKILL) every 5 s for 3 minutes, and the run must end right.

python -m benchmarks.chaos.random_kills --json OUT

The role is drawn at random, with a seed, from those that have a live process: rollout worker, its engine, verifier,
teacher replica, learner rank and broker. The budgets of restarts are raised so that they last.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from benchmarks.chaos.smoke_run import ROLES, Ending, SmokeRun, smoke_run, wait_for
from benchmarks.measure import JsonPath

_SETTINGS = (
    "failures.heartbeat_s=1",
    "failures.max_group_attempts=100",
    "rollout.max_restarts=1000",
    "verifier_pool.max_restarts=1000",
    "learner.max_restarts=1000",
    "teacher.max_retries=1000",
    "checkpoints.every_steps=1",
    "evaluation.every_steps=0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a run with kills.

    Attributes:
        ending: End of the run.
        kills: Number of kills of each role.
        killed_for_s: Time from the first kill to the last, seconds.
        steps_under_kills: Number of steps that the run finished meanwhile.
        recovered_s: Time from the last kill to the end of the second step after it, seconds.
        resumed: Number of times that the run ended and was continued. Must be 0.
    """

    ending: Ending
    kills: dict[str, int]
    killed_for_s: float
    steps_under_kills: int
    recovered_s: float
    resumed: int

    @property
    def is_right(self) -> bool:
        return self.ending.is_right and not self.resumed


def kill_at_random(run: SmokeRun, *, seconds: float, every_s: float, seed: int, console: Console) -> Counter[str]:
    """Kill a random process of a run again and again. Return the number of kills of each role.

    Args:
        run: The run, which has finished a step.
        seconds: Duration of the kills, seconds.
        every_s: Time between two kills, seconds.
        seed: Seed of the choice.
        console: Where each kill is printed.
    """
    chance, kills = random.Random(seed), Counter[str]()
    began = time.monotonic()
    for number in range(int(seconds / every_s)):
        time.sleep(max(0.0, began + number * every_s - time.monotonic()))
        run.resume_if_ended()
        alive = {role: found for role in ROLES if (found := run.processes(role))}
        if not alive:
            continue
        role = chance.choice(sorted(alive))
        with suppress(psutil.NoSuchProcess):
            chance.choice(alive[role]).kill()
            kills[role] += 1
            console.print(f"{time.monotonic() - began:5.0f} s, step {run.steps()}: {role}", highlight=False)
    return kills


def measure(folder: Path, *, seconds: float, every_s: float, steps: int, seed: int, console: Console) -> Result:
    """Run the smoke configuration under kills, and then to its end. The arguments are those of `kill_at_random`.

    Args:
        folder: Folder of the run.
        steps: Number of steps of the run.
    """
    with smoke_run(folder / "run", [*_SETTINGS, f"training.steps={steps}"]) as run:
        wait_for(lambda: run.steps() > 0 or run.has_ended(), "the first step")
        before, began = run.steps(), time.monotonic()
        kills = kill_at_random(run, seconds=seconds, every_s=every_s, seed=seed, console=console)
        killed_for_s, after = time.monotonic() - began, run.steps()
        last_kill = time.monotonic()

        def has_recovered() -> bool:
            run.resume_if_ended()
            return run.steps() >= min(after + 2, steps)

        try:
            wait_for(has_recovered, "two further steps")
            recovered_s = time.monotonic() - last_kill
            ending = run.finish("smoke run")
        except TimeoutError:
            console.print(run.tail(), markup=False)
            raise
        return Result(
            ending=ending,
            kills=dict(kills),
            killed_for_s=round(killed_for_s, 1),
            steps_under_kills=after - before,
            recovered_s=round(recovered_s, 1),
            resumed=run.resumed,
        )


def main(
    seconds: Annotated[float, typer.Option(help="Duration of the kills, seconds.", min=5)] = 180.0,
    every_s: Annotated[float, typer.Option(help="Time between two kills, seconds.", min=1)] = 5.0,
    steps: Annotated[int, typer.Option(help="Number of steps of the run.", min=4)] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the choice of processes.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the run. Default: a temporary one.", show_default=False)
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Kill random processes of a run, and exit with 1 unless it finishes with nothing lost and nothing twice."""
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, seconds=seconds, every_s=every_s, steps=steps, seed=seed, console=console)
    console.print(asdict(result))
    console.print("right" if result.is_right else "WRONG")
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    raise typer.Exit(0 if result.is_right else 1)


if __name__ == "__main__":
    typer.run(main)
